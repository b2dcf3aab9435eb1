"""What a training run tells: metrics.csv, TensorBoard, bad_videos.jsonl, and a progress bar or plain lines."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from m2clip.files import flush, replacing

METRICS, BAD_VIDEOS = "metrics.csv", "bad_videos.jsonl"


class RunLog:
    """Records of one run, written by the main process only.

    Args:
        folder: the run folder.
        total_steps: optimiser steps of the whole run.
        step: step that training starts from; records of later steps, left by a run that was cut off, are dropped.
        quiet: print nothing.
        active: whether this process writes; all methods of an inactive log do nothing.
    """

    def __init__(self, folder: Path, total_steps: int, step: int = 0, quiet: bool = False, active: bool = True) -> None:
        self.metrics, self.bad_videos = folder / METRICS, folder / BAD_VIDEOS
        self.total_steps, self.active, self.quiet = total_steps, active, quiet or not active
        self.first_step, self.started = step, time.monotonic()
        self._bar: Any = None
        self._known_bad: set[str] = set()
        self._board: Any = None
        if not active:
            return
        self._drop_rows_after(step)
        self._drop_bad_videos_after(step)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if not self.quiet:
            self._start_bar(step)

    def rows(self) -> list[dict[str, str]]:
        """The lines of metrics.csv so far."""
        if not self.metrics.exists():
            return []
        return list(csv.DictReader(_whole_lines(self.metrics)))

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Add a line to metrics.csv and its numbers to TensorBoard.

        Args:
            step: optimiser steps done.
            epoch: the epoch, counted from 1.
            values: numbers by column name; an unknown column is added to the file.
        """
        if not self.active:
            return
        row = {"step": step, "epoch": epoch, **values}
        columns = self._columns()
        if unknown := [name for name in row if name not in columns]:
            columns += unknown
            self._rewrite(columns, self.rows())
        with self.metrics.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerow(row)
        for name, value in values.items():
            self._board.add_scalar(name.replace("_", "/", 1), value, step)

    def show(self, step: int, epoch: int, epochs: int, loss: float, lr: float, clips_per_second: float) -> None:
        """Print a line where no progress bar is shown, else put the numbers beside the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            text = f"epoch {epoch}/{epochs}  loss {loss:.4f}  {clips_per_second:.1f} clips/s"
            self._bar.update(0, numbers=text)
            return
        left = (time.monotonic() - self.started) / max(1, step - self.first_step) * (self.total_steps - step)
        self.say(
            f"epoch {epoch}/{epochs}  step {step}/{self.total_steps}  loss {loss:.4f}  lr {lr:.2e}  "
            f"{clips_per_second:.1f} clips/s  left {timedelta(seconds=round(left))}"
        )

    def advance(self, step: int) -> None:
        """Move the progress bar to this step."""
        if self._bar is not None:
            self._bar.update(0, completed=step)

    def say(self, line: str) -> None:
        """Print one line, above the progress bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(line, flush=True)

    def record_bad_videos(self, entries: Iterable[dict[str, Any]], step: int) -> None:
        """Add videos that could not be read to bad_videos.jsonl, each path once.

        Args:
            entries: dictionaries with "path", "error" and "replaced_by".
            step: optimiser step in which they were met.
        """
        for entry in entries:
            path = str(entry["path"])
            if not self.active or path in self._known_bad:
                continue
            self._known_bad.add(path)
            line = {"path": path, "error": str(entry["error"]), "replaced_by": str(entry["replaced_by"]), "step": step}
            with self.bad_videos.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.say(f"{path}: {entry['error']} (replaced by another video of its class)")

    @property
    def bad_count(self) -> int:
        """How many different videos could not be read."""
        return len(self._known_bad)

    def flush(self) -> None:
        """Wait until all records are on the disk: before a checkpoint after which they are not made again."""
        for path in (self.metrics, self.bad_videos):
            if self.active and path.exists():
                flush(path)

    def close(self) -> None:
        """Take the progress bar down and finish the files."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._board is not None:
            # A full disk has been told of by what is written first, or will be.
            with suppress(OSError):
                self._board.close()

    def _start_bar(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        if console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.add_task("", total=self.total_steps, completed=step, numbers="")
            self._bar.start()

    def _columns(self) -> list[str]:
        if not self.metrics.exists():
            return []
        return next(csv.reader(_whole_lines(self.metrics)), [])

    def _drop_rows_after(self, step: int) -> None:
        columns, rows = self._columns(), self.rows()
        if columns:
            self._rewrite(columns, [row for row in rows if step > 0 and int(row["step"]) <= step])

    def _drop_bad_videos_after(self, step: int) -> None:
        if not self.bad_videos.exists():
            return
        # A video met in this step or later will be met again.
        kept = [line for line in _whole_lines(self.bad_videos) if json.loads(line)["step"] < step]
        with replacing(self.bad_videos) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._known_bad = {json.loads(line)["path"] for line in kept}

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        with replacing(self.metrics) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without one at its end that was cut off."""
    with path.open(newline="", encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]
