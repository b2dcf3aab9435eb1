"""What a training run tells: metrics.csv, loggers, bad_videos.jsonl, warnings.txt, a progress bar or lines."""

from __future__ import annotations

import csv
import io
import json
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from m2clip.errors import InputError, Notice
from m2clip.evaluate.results import Failure
from m2clip.files.disk import flush, parse_json, read_text, replacing, write_text
from m2clip.terminal import printable
from m2clip.train.loggers import Logger, close_loggers, reason

METRICS, BAD_VIDEOS, WARNINGS = "metrics.csv", "bad_videos.jsonl", "warnings.txt"


class RunLog:
    """Records of one run, written by the main process only.

    Args:
        folder: the run folder.
        total_steps: optimiser steps of the whole run.
        step: step that training starts from; records of later steps, left by a run that was cut off, are dropped.
        quiet: print nothing but warnings.
        active: whether this process writes; all methods of an inactive log do nothing.
        loggers: what else is told the numbers. One that fails is left out from then on, with a warning.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        step: int = 0,
        quiet: bool = False,
        active: bool = True,
        loggers: Iterable[Logger] = (),
    ) -> None:
        self.metrics, self.bad_videos, self.warnings = folder / METRICS, folder / BAD_VIDEOS, folder / WARNINGS
        self.total_steps, self.active, self.quiet = total_steps, active, quiet or not active
        self.first_step, self.started = step, time.monotonic()
        self._bar: Any = None
        self._known_bad: set[str] = set()
        self._loggers = list(loggers)
        if not active:
            return
        self._drop_rows_after(step)
        self._drop_bad_videos_after(step)
        if not self.quiet:
            self._start_bar(step)

    def rows(self) -> list[dict[str, str]]:
        """The lines of metrics.csv so far.

        Raises:
            InputError: it is not what a run writes.
        """
        return _read_metrics(self.metrics)[1]

    def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Add a line to metrics.csv and give its numbers to the loggers.

        Args:
            step: optimiser steps done.
            epoch: the epoch, counted from 1.
            values: numbers by column name; an unknown column is added to the file.
        """
        if not self.active:
            return
        row = {"step": step, "epoch": epoch, **values}
        columns, rows = _read_metrics(self.metrics)
        if unknown := [name for name in row if name not in columns]:
            columns += unknown
            self._rewrite(columns, rows)
        with self.metrics.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerow(row)
        grouped = {name.replace("_", "/", 1): value for name, value in values.items()}
        for logger in tuple(self._loggers):
            try:
                logger.log(step, grouped)
            except Exception as error:
                self._loggers.remove(logger)
                self.warn(f"{logger.name} has failed ({reason(error)}): training goes on without it")

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
        line = printable(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """Tell a `Notice`, whether quiet or not, and add its line to warnings.txt if it is not there."""
        if not self.active:
            return
        warnings.warn(Notice(line), stacklevel=2)
        if not self.warnings.exists() or f"{line}\n" not in _whole_lines(self.warnings):
            with self.warnings.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

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
            said = Failure(0, path, str(entry["error"])).describe()
            self.say(f"{said} (replaced by another video of its class)")

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
        close_loggers(self._loggers)

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

    def _drop_rows_after(self, step: int) -> None:
        columns, rows = _read_metrics(self.metrics)
        if columns:
            self._rewrite(columns, [row for row in rows if step > 0 and int(row["step"]) <= step])

    def _drop_bad_videos_after(self, step: int) -> None:
        if not self.bad_videos.exists():
            return
        # A video met in this step or later will be met again.
        with _reading(self.bad_videos):
            entries = [(line, parse_json(line)) for line in _whole_lines(self.bad_videos)]
            kept = [(line, str(entry["path"])) for line, entry in entries if entry["step"] < step]
        write_text("".join(line for line, _ in kept), self.bad_videos)
        self._known_bad = {path for _, path in kept}

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        with replacing(self.metrics) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def _read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of metrics.csv; none where there is no such file."""
    if not path.exists():
        return [], []
    with _reading(path):
        reader = csv.DictReader(_whole_lines(path))
        rows = list(reader)
        for row in rows:
            # A row of more columns than the file has them without a name.
            if None in row or None in row.values():
                raise ValueError(f"line {rows.index(row) + 2} has other columns than the first")
            int(row["step"]), float(row.get("val_top1") or 0)
        return list(reader.fieldnames or ()), rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{path}: is no record of this run ({reason}): move it away to go on without it") from None


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without one at its end that was cut off."""
    return [line for line in io.StringIO(read_text(path), newline="") if line.endswith("\n")]
