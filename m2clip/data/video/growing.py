"""Pipes, and files that grow, as file objects."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections.abc import Callable

from m2clip.errors import InputError


def open_growing(source: str, timeout: float, stopped: Callable[[], bool]) -> Pipe | Growing:
    """What reads a pipe, or a file that may grow.

    Args:
        source: "-" for standard input, or a path.
        timeout: seconds after which a file is complete to which nothing was written.
        stopped: whether nobody reads any more; a read that waits then ends.

    Raises:
        InputError: there is neither.
    """
    if source == "-":
        if sys.stdin.isatty():
            raise InputError("standard input is a terminal: pipe a video into it")
        return Pipe(sys.stdin.fileno(), stopped)
    try:
        kind = os.stat(source).st_mode
        if stat.S_ISFIFO(kind):
            return Pipe(os.open(source, os.O_RDONLY), stopped)
        if stat.S_ISREG(kind):
            return Growing(os.open(source, os.O_RDONLY), timeout, stopped)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "no such file"
        raise InputError(f"{source}: {what}; give a camera, an address, - or a file") from None
    raise InputError(f"{source}: neither a pipe nor a file")


class Pipe:
    """Reading waits for what comes; `start` is the first eight bytes."""

    start = b""

    def __init__(self, descriptor: int, stopped: Callable[[], bool]) -> None:
        self._descriptor, self._stopped = descriptor, stopped

    def read(self, count: int) -> bytes:
        """At most so many bytes, none at the end."""
        while not self._stopped():
            if select.select([self._descriptor], [], [], 0.2)[0]:
                data = os.read(self._descriptor, count)
                self.start += data[: 8 - len(self.start)]
                return data
        return b""


class Growing:
    """At the end of the file reading waits for more, unless nothing was written for long; `start` is as in a pipe."""

    start = b""

    def __init__(self, descriptor: int, timeout: float, stopped: Callable[[], bool]) -> None:
        self._file, self._timeout, self._stopped = os.fdopen(descriptor, "rb", buffering=0), timeout, stopped

    def read(self, count: int) -> bytes:
        """At most so many bytes, none at the end."""
        while not self._stopped():
            data = self._file.read(count) or b""
            self.start += data[: 8 - len(self.start)]
            written = os.fstat(self._file.fileno()).st_mtime
            if data or time.time() - written > self._timeout:
                return data
            time.sleep(0.05)
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def close(self) -> None:
        """Release the file."""
        self._file.close()
