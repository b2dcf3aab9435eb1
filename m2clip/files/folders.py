"""Folders that a command writes to: one command at a time, and apart from what it reads."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m2clip.errors import InputError
from m2clip.files.disk import writing

LOCK = ".lock"
# Locks of POSIX, unlike those of flock, are not shared with forked processes, which may outlive a killed one; but
# they keep only other processes out.
_held: set[tuple[int, int]] = set()


@contextmanager
def locked(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """The folder, made if needed, for this call alone; the lock ends with the process, however that ends.

    Args:
        folder: is created.
        what: the command, for the message.

    Raises:
        InputError: another call holds the folder, or it cannot be written to.
    """
    path = Path(folder) / LOCK
    new = not path.parent.exists()
    with writing(path):
        descriptor = _open(path)
    try:
        own = os.fstat(descriptor)
        key = own.st_dev, own.st_ino
        if key in _held or not _take(descriptor, path):
            raise InputError(f"{folder}: another {what} is writing to it; wait for its end, or give another folder")
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            # While it is locked: whoever opens it from now on makes a new one.
            with suppress(OSError):
                path.unlink()
                if new:
                    path.parent.rmdir()  # which fails where something was written
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _take(descriptor: int, path: Path) -> bool:
    """Lock the file; False where another process has, or has just removed it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError as error:
        print(
            f"m2clip: {path.parent}: its file system has no locks ({error.strerror}): see to it yourself that no other "
            "call writes to this folder",
            file=sys.stderr,
            flush=True,
        )
        return True


def check_writable(folder: str | os.PathLike[str], option: str = "--output") -> None:
    """Find out before the work, and not after it, that nothing can be written to a folder, which is made if needed.

    Args:
        folder: to write to.
        option: how it is chosen, for the message.

    Raises:
        InputError: it cannot be made, or no file can be made in it.
    """
    from tempfile import TemporaryFile  # takes half as long to import as all commands together

    try:
        os.makedirs(folder, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}; give another folder with {option}"
        ) from None


def check_apart(
    output: str | os.PathLike[str] | None, *inputs: str | os.PathLike[str] | None, option: str = "--output"
) -> None:
    """Refuse to write into what is read.

    Args:
        output: file or folder to write to; it need not exist. None is passed over.
        inputs: files and folders that are read; None is passed over. Beside a file may be written, within a folder not:
            what lies in a folder of videos becomes one of its classes or videos.
        option: how the output is chosen, for the message.

    Raises:
        InputError: the output is one of the inputs, or within a folder that is one.
    """
    if output is None:
        return
    target = Path(os.path.realpath(output))
    for given in inputs:
        if given is None:
            continue
        source = Path(os.path.realpath(given))
        if target == source or _same(target, source):
            raise InputError(f"{output} is what is read from: nothing is written over it; give another {option}")
        if source.is_dir() and any(_same(parent, source) for parent in target.parents):
            raise InputError(
                f"{output} lies within {given}, which is read from: what is written there would count as its videos or "
                f"classes; give another {option}"
            )


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
