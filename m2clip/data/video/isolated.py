"""Videos decoded in a child process: a file that crashes, hangs or bloats the decoder costs itself and nothing else.

The child is one of its thread and process, is used for one video after another, and is replaced when it had to be
ended. It is a plain sub-process, so that the data loader's workers, which must not have children of their own kind, can
have one; it ends when its parent does, however that ends.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np

from m2clip.data.video.base import MAX_PIXELS, TOGETHER, Video, VideoError, collect
from m2clip.data.video.decoder_child import LENGTH
from m2clip.data.video.readers import SegmentError, check_reader
from m2clip.errors import InputError

# The child imports the decoders; on a busy machine that takes its time.
_START_SECONDS = 120
# The times of all frames of a long video are a long message.
_LONGEST_MESSAGE = 1 << 26
_CHILD = "from m2clip.data.video.decoder_child import main"


@dataclass(frozen=True)
class DecoderLimits:
    """What one video may cost.

    Args:
        seconds: time for opening it, and for every few frames that are read (`TOGETHER`).
        memory: bytes that its decoder may take.

    Raises:
        InputError: a limit that is not above 0.
    """

    seconds: float = 60.0
    memory: int = 4 << 30

    def __post_init__(self) -> None:
        for field in ("seconds", "memory"):
            if not getattr(self, field) > 0:
                raise InputError(f"the limit of {field} for one video must be above 0, not {getattr(self, field)}")


DEFAULT_LIMITS = DecoderLimits()


def open_isolated(
    path: str | Path,
    reader: str = "auto",
    *,
    pattern: str | None = None,
    num_frames: int | None = None,
    segment: Sequence[float] | None = None,
    limits: DecoderLimits = DEFAULT_LIMITS,
) -> Video:
    """Open a video for reading frames by index, decoded in this thread's child process; use it in a `with` block.

    Args:
        path: as for `m2clip.data.video.readers.open_video`.
        reader: as for `m2clip.data.video.readers.open_video`.
        pattern: as for `m2clip.data.video.readers.open_video`.
        num_frames: as for `m2clip.data.video.readers.open_video`.
        segment: as for `m2clip.data.video.readers.open_video`.
        limits: what opening the video, and reading from it, may cost.

    Raises:
        VideoError: the video cannot be read, or it crashed the decoder or exceeded a limit.
        InputError: unknown reader, or its library is not installed.
    """
    check_reader(reader)
    process = getattr(_own, "process", None)
    if process is None or process.limits != limits:
        if process is not None:
            process.close()
        process = _own.process = DecoderProcess(limits)
    video: Video = process.open(path, reader, pattern=pattern, num_frames=num_frames, segment=segment)
    return video


class IsolatedVideo(Video):
    """A video in a `DecoderProcess`; stays readable when the process had to be replaced meanwhile."""

    def __init__(self, process: DecoderProcess, named: dict[str, Any]) -> None:
        self.path = Path(named["path"])
        self._process, self._named = process, named
        reply = process._ask("open", named)
        self.num_frames = process._whole_number(named, reply, "num_frames", least=1)
        rate = reply.get("fps")
        self.fps = float(rate) if isinstance(rate, (int, float)) else math.nan
        declared = reply.get("declared")
        self.declared = None if declared is None else process._whole_number(named, reply, "declared", least=0)

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        """Presentation times, as `Video.seconds`."""
        times = self._process._ask("seconds", self._named, indices=list(indices)).get("seconds")
        return None if times is None else [float(time) for time in times]

    def _each_sorted(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        return self._process._frames(self._named, indices)

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        return collect(self.path, indices, self._each_sorted(indices))

    def close(self) -> None:
        """Have the child close the file."""
        self._process._release()


class DecoderProcess:
    """A child process that decodes videos for one thread.

    Args:
        limits: what opening a video, and reading from it, may cost.
    """

    def __init__(self, limits: DecoderLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        _processes.add(self)

    def open(
        self,
        path: str | Path,
        reader: str = "auto",
        *,
        pattern: str | None = None,
        num_frames: int | None = None,
        segment: Sequence[float] | None = None,
    ) -> IsolatedVideo:
        """Open a video; arguments and errors as for `open_isolated`."""
        named: dict[str, Any] = {
            "path": str(path),
            "reader": reader,
            "pattern": pattern,
            "num_frames": num_frames,
        }
        if segment is not None:
            named["segment"] = list(segment)
        return IsolatedVideo(self, named)

    @property
    def pid(self) -> int | None:
        """Process id of the child, None where there is none at present."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child; the next video starts another."""
        if self._child is not None:
            self._stop()
            self._child = None

    def _ask(self, what: str, named: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. The child is ended if anything but a proper reply comes."""
        if self._child is None or self._child.poll() is not None:
            # A child that ended between two videos was ended from outside; no video is to blame.
            self.close()
            self._start()
        self._deadline = time.monotonic() + self.limits.seconds
        try:
            self._send({"do": what, "video": named, "seconds": self.limits.seconds, **more})
        except _Ended as end:
            self._give_up(named, end)
        return self._reply(named)

    def _reply(self, named: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._receive()
        except _Ended as end:
            self._give_up(named, end)
        if "error" in reply:
            message = str(reply["error"])
            kinds: dict[Any, type[InputError]] = {"input": InputError, "segment": SegmentError}
            raise kinds.get(reply.get("kind"), VideoError)(message)
        return reply

    def _frames(self, named: dict[str, Any], indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        reply, wanted, child = self._ask("read", named, indices=indices), set(indices), self._child
        missing, received = set(indices), 0
        try:
            while not reply.get("done"):
                index, frame = self._frame(named, reply, wanted)
                missing.discard(index)
                received += 1
                paused = time.monotonic()
                yield index, frame
                if received % TOGETHER:
                    self._deadline += time.monotonic() - paused
                else:
                    # Of a long video all frames may be read one after the other.
                    self._deadline = time.monotonic() + self.limits.seconds
                reply = self._reply(named)
            if missing:
                self._give_up(named, _Ended("its decoder answered nonsense"))
            child = None
        except InputError:
            child = None
            raise
        finally:
            if child is not None and child is self._child:
                # Left early: frames are still to come, which nobody waits for.
                self.close()

    def _frame(self, named: dict[str, Any], reply: dict[str, Any], wanted: set[int]) -> tuple[int, np.ndarray]:
        index, shape, first = reply.get("index"), reply.get("shape"), reply.get("colours") == "first"
        if type(index) is not int or index not in wanted or not _is_picture(shape, 0 if first else 2):
            self._give_up(named, _Ended("its decoder answered nonsense"))
        frame: np.ndarray = np.empty(shape, np.uint8)
        try:
            self._fill(frame.data.cast("B"))
        except _Ended as end:
            self._give_up(named, end)
        return index, frame if first else frame.transpose(2, 0, 1)

    def _whole_number(self, named: dict[str, Any], reply: dict[str, Any], field: str, least: int) -> int:
        value = reply.get(field)
        if type(value) is not int or value < least:
            self._give_up(named, _Ended("its decoder answered nonsense"))
        return value

    def _release(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._deadline = time.monotonic() + self.limits.seconds
            try:
                self._send({"do": "close"})
            except _Ended:
                self.close()

    def _give_up(self, named: dict[str, Any], end: _Ended) -> NoReturn:
        """End the child and raise a VideoError that says why."""
        reason = str(end) or self._death()
        self.close()
        raise VideoError(f"{named['path']}: {reason}") from None

    def _death(self) -> str:
        """Why the child is gone."""
        assert self._child is not None
        try:
            code = self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "its decoder went silent"
        if code == -signal.SIGKILL:
            return "its decoder was killed, probably because memory ran out"
        return f"it crashed the decoder ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def _start(self) -> None:
        # The parent's own search path: neither its folder nor a file that lies there by chance is imported from.
        code = f"import sys; memory = int(sys.argv[1]); sys.path[:] = sys.argv[2:]\n{_CHILD}\nmain(memory)"
        self._child = subprocess.Popen(
            [sys.executable, "-c", code, str(self.limits.memory), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Every further arena of the allocator would count as much address space as a large video.
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        self._stop = weakref.finalize(self, _end, self._child)
        self._deadline = time.monotonic() + _START_SECONDS
        try:
            self._receive()
        except _Ended:
            self.close()
            raise RuntimeError(
                "the process that decodes videos does not start; `python -c 'import m2clip.data.video.decoder_child'` "
                "may tell why, and without isolation videos are decoded in the process itself"
            ) from None

    def _send(self, message: dict[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        data = json.dumps(message).encode()
        rest = memoryview(LENGTH.pack(len(data)) + data)
        descriptor = self._child.stdin.fileno()
        try:
            while rest:
                self._wait(descriptor, select.POLLOUT)
                # No more than a pipe that is ready surely takes without blocking.
                rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            raise _Ended from None

    def _receive(self) -> dict[str, Any]:
        head = bytearray(LENGTH.size)
        self._fill(memoryview(head))
        (length,) = LENGTH.unpack(head)
        if length > _LONGEST_MESSAGE:
            raise _Ended("its decoder answered nonsense")
        data = bytearray(length)
        self._fill(memoryview(data))
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise _Ended("its decoder answered nonsense")
        return message

    def _fill(self, buffer: memoryview) -> None:
        assert self._child is not None and self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        while buffer:
            self._wait(descriptor, select.POLLIN)
            count = os.readv(descriptor, [buffer])
            if not count:
                raise _Ended
            buffer = buffer[count:]

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(self._deadline - time.monotonic(), 0) * 1000):
            raise _Ended(f"was not decoded within {self.limits.seconds:g} seconds")

    def _abandon(self) -> None:
        """In a forked process: the child is the original's. Forget it, and close our copies of its pipes."""
        if self._child is not None:
            self._stop.detach()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            # Else the object would look for a process which is none of ours when it is collected.
            self._child.returncode = 0
            self._child = None


class _Ended(Exception):
    """The child gave no reply: the message says why; without one it is gone."""


_own = threading.local()
_processes: weakref.WeakSet[DecoderProcess] = weakref.WeakSet()


def _is_picture(shape: Any, colours: int) -> TypeGuard[list[int]]:
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(type(extent) is int and extent > 0 for extent in shape)
    ):
        return False
    return shape[colours] == 3 and math.prod(shape) <= 3 * MAX_PIXELS


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _abandon_all() -> None:
    for process in list(_processes):
        process._abandon()


os.register_at_fork(after_in_child=_abandon_all)
