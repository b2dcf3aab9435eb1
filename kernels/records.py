"""Records that outlive a process: JSON files in the user's cache, each with a digest, and lines for the user.

What is kept here saves time and decides no number. So reading and writing may fail, and the caller goes on without.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DIGEST = "record_sha256"
MOST_BYTES = 1 << 24
_POLL = 0.05  # seconds between two looks at a lock

_told: set[str] = set()


def cache_folder(variable: str, name: str) -> Path | None:
    """The folder that an environment variable names, else m2clip/NAME in the user's cache; None without a home."""
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2clip" / name
    except RuntimeError:  # no HOME, and the user is not in the machine's list
        return None


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a record under a random name and rename it; where the path is a link, the link stays.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    text = json.dumps({**content, DIGEST: _digest(content)}, indent=1, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """A record that is what was written, as far as its digest tells.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record, or a damaged one; one line.
    """
    # A pipe, which would let its reader wait, is opened all the same and refused.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        record = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    digest = record.pop(DIGEST, None)
    if digest is not None and digest != _digest(record):
        raise ValueError("it is damaged or was changed: its digest is wrong")
    return record


def file_name(text: str) -> str:
    """The text as the name of a file: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def locked(folder: Path, seconds: float | None = None) -> Iterator[bool]:
    """One process at a time in a folder; yields whether this one has it, False once it has waited that long.

    Args:
        folder: made if it is not there.
        seconds: to wait; None waits without end.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = None if seconds is None else time.monotonic() + seconds
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if end is not None and time.monotonic() >= end:
                    yield False
                    return
                time.sleep(_POLL)
        yield True  # closing the file releases it


def tell(line: str) -> None:
    """One line on standard error, once in a process; under torchrun by the first process of a machine alone."""
    if line in _told or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _told.add(line)
    with suppress(AttributeError, OSError, ValueError):  # the stream may be missing or closed
        sys.stderr.write(f"m2clip: {' '.join(line.split())}\n")
        sys.stderr.flush()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
