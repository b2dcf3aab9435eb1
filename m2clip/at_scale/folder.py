"""The folder of a job: one file for each part of the list, whole or absent, and the manifest.

A part is done when its file is there; it is written under a temporary name, flushed and renamed. While a process works
on a part it holds a lock, which the system takes from it when it ends, however it ends; so any number of processes, on
machines that share the folder, work on one job, and what a dead one had begun is begun again by another.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2clip.at_scale.settings import Outcome, Row, Summary, Work
from m2clip.checkpoint import weights_hash
from m2clip.data.annotations import VideoItem, list_hash
from m2clip.errors import InputError
from m2clip.files import flush, replacing
from m2clip.results import Failure, write_json, writing
from m2clip.run_state import check_same_run

MANIFEST = "manifest.json"
_FORMAT = 1
_VIEWS = ("num_frames", "size", "sampling", "stride", "reader", "normalize", "clips", "crops")


class JobFolder:
    """Where a job's parts are kept; opening it checks that whatever is there belongs to the same job.

    Args:
        path: the folder; is created.
        work: the job.

    Raises:
        InputError: it holds another job, with what differs named, or it cannot be written.
    """

    def __init__(self, path: Path, work: Work) -> None:
        self.path, self._work, self._task = path, work, work.task
        self._known: dict[int, list[Failure]] = {}
        self._identity = identity(work)
        self._open()
        with writing(self._parts / ".claims"):
            # Locks of a process go when it closes any descriptor of the file: this is the only one.
            self._claims = os.open(self._parts / ".claims", os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Give back all parts that are claimed."""
        os.close(self._claims)

    def _open(self) -> None:
        manifest = self.path / MANIFEST
        if not manifest.exists():
            names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            # Another process may just have written the manifest, and one that was killed left a part of one.
            others = [name for name in names if name not in (MANIFEST, "parts") and not name.startswith(".")]
            if others:
                raise InputError(f"{self.path}: holds other files, such as {others[0]}; give a new folder")
            write_json({**self._head(), "complete": False}, manifest)
        try:
            saved = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{manifest}: cannot be read; remove it if the folder holds no other job") from None
        check_same_run(saved, json.loads(json.dumps(self._identity)), self.path)

    def _head(self) -> dict[str, Any]:
        # Beside the settings, as it may name a file: the same weights in another place are the same job.
        return {"settings": self._identity, "clip": self._work.model.clip_source}

    @property
    def _parts(self) -> Path:
        return self.path / "parts"

    def part_file(self, number: int) -> Path:
        """The file of a part."""
        return self._parts / f"{self._task.name}-{number:05d}.{self._task.suffix}"

    def missing(self) -> list[int]:
        """The parts that no intact file holds."""
        return [number for number in range(self._work.num_parts) if not self._is_done(number)]

    def done(self) -> int:
        """How many videos are in the parts that were finished when it was last looked."""
        return sum(len(self._work.part(number)) for number in self._known)

    def failures(self, number: int) -> list[Failure]:
        """The videos that failed in a part that is done."""
        return self._known[number]

    def drop_failed(self) -> None:
        """Remove the parts in which a video failed, so that they are computed again."""
        self.missing()
        for number in [number for number, failures in self._known.items() if failures]:
            self.part_file(number).unlink(missing_ok=True)
            del self._known[number]

    def claim(self, first: int, most: int) -> list[int]:
        """Up to `most` missing parts that no other process works on, taken from `first` on and round."""
        claimed: list[int] = []
        missing = self.missing()
        for number in [n for n in missing if n >= first] + [n for n in missing if n < first]:
            if len(claimed) == most:
                break
            if not self._lock(number):
                continue
            # Another process may have finished it since.
            if self._is_done(number):
                self._unlock(number)
            else:
                claimed.append(number)
        return claimed

    def write(self, number: int, outcomes: list[Outcome]) -> None:
        """Store a part and give back its claim."""
        path = self.part_file(number)
        with writing(path), replacing(path) as temporary:
            self._task.write(temporary, self._work.items, outcomes)
        paths = self._work.items
        self._known[number] = [
            Failure(outcome.index, str(paths[outcome.index].path), outcome.error)
            for outcome in outcomes
            if outcome.error is not None
        ]
        self._unlock(number)

    def finish(self) -> Summary:
        """Write the table of all videos and the whole manifest, once every part is there."""
        work, table = self._work, self.path / self._task.table
        failures: list[Failure] = []
        columns = self._task.columns(work.model)
        with writing(table), replacing(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *columns, "error"])
            for row in self._rows():
                writer.writerow([row.path, *row.cells, *[""] * (len(columns) - len(row.cells)), row.error or ""])
                if row.error is not None:
                    failures.append(Failure(row.index, row.path, row.error))
        names = [self.part_file(number).name for number in range(work.num_parts)]
        summary = Summary(self._task.name, str(self.path), str(table), len(work.items), names, failures)
        facts = {name: value for name, value in summary.to_dict().items() if name not in ("folder", "table")}
        write_json({**self._head(), "complete": True, **facts}, self.path / MANIFEST)
        for left in self._parts.glob(".*.partial"):  # of processes that were killed while they wrote
            left.unlink(missing_ok=True)
        flush(self._parts)
        return summary

    def _rows(self) -> Iterator[Row]:
        for number in range(self._work.num_parts):
            yield from self._task.read(self.part_file(number))

    def _is_done(self, number: int) -> bool:
        if number in self._known:
            return True
        try:
            rows = list(self._task.read(self.part_file(number)))
            if [row.index for row in rows] != list(self._work.part(number)):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._known[number] = [Failure(row.index, row.path, row.error) for row in rows if row.error is not None]
        return True

    def _lock(self, number: int) -> bool:
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            # A file system without locks: two processes may compute the same part, and write the same file.
            return True
        return True

    def _unlock(self, number: int) -> None:
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, number)
        except OSError:
            return


def identity(work: Work) -> dict[str, Any]:
    """All that decides what a job writes, as JSON values."""
    model, views = work.model, asdict(work.views)
    kept = [work.settings.precision, getattr(model, "precision", "fp32")]
    return {
        "format_version": _FORMAT,
        "task": work.task.name,
        "shard_size": work.settings.shard_size,
        "precision": kept,
        "list.videos": len(work.items),
        "list.sha256": list_hash(work.items),
        "list.packed": packed_hash(work.items),
        "model.method": model.method,
        "model.options": model.options(),
        "model.weights_sha256": weights_hash(model),
        **{f"views.{name}": views[name] for name in _VIEWS},
        **work.task.identity(model),
    }


def packed_hash(items: Sequence[VideoItem]) -> str | None:
    """Identity of the frames that packs hold of the videos, None without packs: a pack's list is that of its videos."""
    sums = [str(item.sample.crc32) for item in items if item.sample is not None]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()[:16] if sums else None
