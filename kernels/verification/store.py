"""What verifications found, on disk and in this process: one file for each key.

A file that cannot be read, or is of another version, is no answer. Where nothing can be written, what was found holds
for this process alone. One line tells of either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .. import records
from .keys import Key

FOLDER = "M2CLIP_VERIFIED"  # names another folder for the JSON files
FORMAT = 1


class Verdict(NamedTuple):
    """What came of a verification.

    Attributes:
        passed: whether the kernel may be used.
        error: of the worst tensor, as a multiple of PyTorch's own in the same dtype; 0 where nothing was computed.
        message: what was wrong, as the end of a sentence; empty where it passed.
        when: seconds since 1970.
        lasting: whether it says something of the kernel, so that it holds for later processes.
    """

    passed: bool
    error: float
    message: str
    when: float
    lasting: bool = True


_memory: dict[Key, Verdict] = {}


def folder() -> Path | None:
    """Where the files are: $M2CLIP_VERIFIED, or m2clip/verified in the user's cache; None without either."""
    return records.cache_folder(FOLDER, "verified")


def known(key: Key) -> Verdict | None:
    """What was found for a key, by this process or an earlier one."""
    if key not in _memory:
        parent = folder()
        found = None if parent is None else _read(parent / f"{key.name}.json")
        if found is None or found[0] != key:
            return None
        _memory[key] = found[1]
    return _memory[key]


def keep(key: Key, verdict: Verdict) -> None:
    """Take note of what was found; on disk, too, where it lasts."""
    _memory[key] = verdict
    if not verdict.lasting:
        return
    content = {"format": FORMAT, "key": key.record(), **verdict._asdict()}
    del content["lasting"]
    parent = folder()
    try:
        if parent is None:
            raise FileNotFoundError("there is no home folder")
        records.write(parent / f"{key.name}.json", content)
    except OSError as error:
        records.tell(
            f"what was verified cannot be kept ({' '.join(str(error).split())}) and holds for this process alone; "
            f"name a folder with {FOLDER}"
        )


def held() -> dict[Key, Verdict]:
    """What this process has seen."""
    return dict(_memory)


def take_over(verdicts: dict[Key, Verdict]) -> None:
    """Believe what another process has found, where this one knows nothing."""
    for key, verdict in verdicts.items():
        _memory.setdefault(key, verdict)


def all_known() -> dict[Key, Verdict]:
    """Everything that is known, of all machines and versions that share the folder."""
    found = dict(_memory)
    parent = folder()
    try:
        paths = sorted(parent.glob("*.json")) if parent is not None else []
    except OSError:
        paths = []
    for record in filter(None, map(_read, paths)):
        found.setdefault(*record)
    return found


@contextmanager
def one_process(seconds: float) -> Iterator[None]:
    """One process at a time, where processes can agree on that; waits for the other at most that long."""
    parent = folder()
    try:
        lock = records.locked(parent, seconds) if parent is not None else None
        if lock is not None:
            lock.__enter__()
    except OSError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.__exit__(None, None, None)


def forget() -> None:
    """Read the files again when they are next needed; what this process alone knew is gone."""
    _memory.clear()


def now() -> float:
    return time.time()


def _read(path: Path) -> tuple[Key, Verdict] | None:
    """What a file holds; None for one that is not there, or with one line for one of no use."""
    try:
        content: dict[str, Any] = records.read(path)
        if content["format"] != FORMAT:
            return None
        key = Key.of_record(content["key"])
        passed, error, message, when = (content[name] for name in ("passed", "error", "message", "when"))
        if not (isinstance(passed, bool) and isinstance(message, str)):
            raise ValueError("it is no verdict")
        return key, Verdict(passed, float(error), message, float(when))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        records.tell(f"{path}: cannot be used ({' '.join(str(error).split())}), and its kernel is verified again")
        return None
