"""How a run is asked to stop, and what ends one from outside: signals, and a disk that takes no more."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from m2clip.errors import InputError

# Ctrl-C may come twice, from the terminal and from torchrun, which passes it on.
_ONE_PRESS = 1.0  # seconds
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


class Stopped(KeyboardInterrupt):
    """A signal ended training early, with a checkpoint: the message says after which step.

    Attributes:
        exit_code: what a program that was ended by this signal returns: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Notes SIGINT and SIGTERM while active; a second SIGINT, or any while `immediate`, raises KeyboardInterrupt.

    Attributes:
        number: the first signal that came; None where none has come.
        immediate: whether there is nothing to be finished first.
    """

    def __init__(self, immediate: bool = False) -> None:
        self.number: int | None = None
        self.immediate = immediate
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Take the two signals over within this context."""
        try:
            before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread may handle signals; elsewhere the caller has its own way to stop
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self, *progress: int) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.requested:
            raise KeyboardInterrupt

    def stopped(self, message: str) -> Stopped:
        """The error that ends the run."""
        # The signal may have come to another process of the group only.
        return Stopped(message, self.number or signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        again = self.requested and number == signal.SIGINT and now - self._since > _ONE_PRESS
        if self.number is None:
            self.number, self._since = number, now
        if self.immediate or again:
            raise KeyboardInterrupt


@contextmanager
def room_needed(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Tells in one line that the disk of a run's folder takes no more.

    Raises:
        InputError: an error of writing that making room, or another disk, remedies.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}): make room and start again; "
            "training resumes from the last checkpoint"
        ) from None
