"""The folder of a job: one file for each part of the list, whole or absent, and the manifest.

A part is done when its file is there, of the digest beside it (hidden, in the form of sha256sum); it is written under a
temporary name, flushed and renamed. While a process works
on a part it holds a lock, which the system takes from it when it ends, however it ends; so any number of processes, on
machines that share the folder, work on one job, and what a dead one had begun is begun again by another.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from m2clip.at_scale.settings import Outcome, Summary, TableRow, Work
from m2clip.at_scale.tables import segment_columns
from m2clip.checkpoints.adapters import weights_hash
from m2clip.config_fields import deciding
from m2clip.data.lists.annotations import list_hash, packed_hash
from m2clip.errors import InputError
from m2clip.evaluate.results import Failure
from m2clip.files.disk import (
    file_digest,
    flush,
    read_json,
    read_text,
    replacing,
    seal,
    unseal,
    write_json,
    write_text,
    writing,
)
from m2clip.files.kept_work import MANIFEST, begin, check_same, plain, remove_partial_files
from m2clip.methods import complete_options

_FORMAT = 1


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
        # The table beside parts is theirs, where a damaged manifest was removed.
        begin(self.path, self._head(), ("parts", self._task.table) if self._parts.is_dir() else ("parts",))
        try:
            found = unseal(read_json(manifest))["settings"]
            # Jobs of versions that had one way only of resizing frames do not name it.
            options = complete_options(str(found["model.method"]), found["model.options"])
            saved = {"views.transform": "standard", **found, "model.options": plain(options)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{manifest}: cannot be read ({reason}); remove it if the folder holds no other job"
            ) from None
        check_same(saved, plain(self._identity), self.path)

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
        with replacing(path) as temporary:
            self._task.write(temporary, self._work.items, outcomes)
            write_text(f"{file_digest(temporary)}  {path.name}\n", _digest_of(path))
        items = self._work.items
        self._known[number] = [
            Failure(outcome.index, items[outcome.index].name, outcome.error)
            for outcome in outcomes
            if outcome.error is not None
        ]
        self._unlock(number)

    def finish(self) -> Summary:
        """Write the table of all videos and the whole manifest, once every part is there."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            # One process at a time, so that what is half-written is of one that was killed. Not all file systems lock.
            with suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            for folder in (self.path, self._parts):
                remove_partial_files(folder)
            return self._finish()
        finally:
            os.close(directory)

    def _finish(self) -> Summary:
        work, table = self._work, self.path / self._task.table
        failures: list[Failure] = []
        columns = self._task.columns(work.model)
        with replacing(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            times = segment_columns(work.items, work.items)
            writer.writerow(["path", *times, *columns, "error"])
            for row in self._rows():
                part = [values[row.index] for values in times.values()]
                rest = [""] * (len(columns) - len(row.cells))
                writer.writerow([row.path, *part, *row.cells, *rest, row.error or ""])
                if row.error is not None:
                    failures.append(Failure(row.index, work.items[row.index].name, row.error))
        names = [self.part_file(number).name for number in range(work.num_parts)]
        summary = Summary(self._task.name, str(self.path), str(table), len(work.items), names, failures)
        facts = {name: value for name, value in summary.to_dict().items() if name not in ("folder", "table")}
        write_json(seal({**self._head(), "complete": True, **facts}), self.path / MANIFEST)
        flush(self._parts)
        return summary

    def _rows(self) -> Iterator[TableRow]:
        for number in range(self._work.num_parts):
            yield from self._task.read(self.part_file(number))

    def _is_done(self, number: int) -> bool:
        if number in self._known:
            return True
        path = self.part_file(number)
        try:
            # Parts of earlier versions have none.
            beside = _digest_of(path)
            if beside.exists() and read_text(beside).split()[:1] != [file_digest(path)]:
                return False
            rows = list(self._task.read(path))
            if [row.index for row in rows] != list(self._work.part(number)):
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        self._known[number] = [
            Failure(row.index, self._work.items[row.index].name, row.error) for row in rows if row.error is not None
        ]
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


def _digest_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def identity(work: Work) -> dict[str, Any]:
    """All that decides what a job writes, as JSON values."""
    model = work.model
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
        "model.weights_sha256": weights_hash(model.state_dict()),
        **{f"views.{name}": value for name, value in deciding(work.views, "clip", "views", "features").items()},
        **work.task.identity(model),
    }
