"""The child process behind `m2clip.data.video.isolated`: opens and reads one video at a time for its parent.

A message is four bytes of length and that much JSON; the frames of a reply follow it as raw bytes. A request names the
video in full, so that a child knows nothing which is lost with it:

    {"do": "open", "video": {...}, "seconds": s}        -> {"num_frames": n, "fps": f, "declared": d}
    {"do": "read", "video": {...}, "seconds": s,
     "indices": [...]}                                  -> for each frame {"index": i, "shape": [3, H, W] or
                                                           [H, W, 3], "colours": "first" or "last"} and the bytes;
                                                           then {"done": true}
    {"do": "seconds", "video": {...}, "seconds": s,
     "indices": [...]}                                  -> {"seconds": [...] or null}
    {"do": "close"}                                     -> no reply

Whatever goes wrong is answered with {"error": one line, "kind": "video", "segment" or "input"}.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from m2clip.data.video.readers import SegmentError, Video, VideoError, open_video
from m2clip.errors import InputError

LENGTH = struct.Struct("<I")
# How much longer than its parent waits a child lives, should the parent be gone.
_GRACE = 5


def main(memory: int, open_video: Callable[..., Video] = open_video) -> None:
    """Serve requests on standard input until it ends; replies go to what standard output was.

    Args:
        memory: bytes of address space that may be taken on top of those of the idle process.
        open_video: opens a video, with the arguments of `m2clip.data.video.readers.open_video`.
    """
    requests, replies = _pipes()
    _protect(memory)
    _send(replies, {"ready": True})
    server = _Server(open_video)
    while (request := _receive(requests)) is not None:
        # Its parent ends a child that is late. Where the parent is gone the kernel does, even within a decoder.
        limit = math.ceil(request.get("seconds", 0)) + _GRACE
        signal.alarm(limit)
        for reply, payload in server.answer(request):
            try:
                _send(replies, reply)
                if payload is not None:
                    replies.write(payload)
            except BrokenPipeError:
                return
            # The parent counts the time of all frames together, without its own.
            signal.alarm(limit)
        signal.alarm(0)


class _Server:
    """Holds the video that was named last, open."""

    def __init__(self, open_video: Callable[..., Video]) -> None:
        self._open_video = open_video
        self._video: Video | None = None
        self._named: dict[str, Any] | None = None

    def answer(self, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], memoryview | None]]:
        if request["do"] == "close":
            self._close()
            return
        try:
            video = self._opened(request["video"])
            if request["do"] == "open":
                yield {"num_frames": video.num_frames, "fps": video.fps, "declared": video.declared}, None
            elif request["do"] == "seconds":
                yield {"seconds": video.seconds(request["indices"])}, None
            else:
                for index, frame in video.each(request["indices"]):
                    # In the order of the memory, which is quicker.
                    last = frame.transpose(1, 2, 0).flags.c_contiguous
                    data = np.ascontiguousarray(frame.transpose(1, 2, 0) if last else frame)
                    colours = "last" if last else "first"
                    yield {"index": index, "shape": list(data.shape), "colours": colours}, data.data.cast("B")
                yield {"done": True}, None
        except VideoError as error:
            yield {"error": str(error), "kind": "segment" if isinstance(error, SegmentError) else "video"}, None
        except InputError as error:
            yield {"error": str(error), "kind": "input"}, None
        except Exception as error:
            # A damaged file can make a decoder's binding raise anything; that costs this video and no other.
            self._close()
            what = " ".join(str(error).split())
            message = f"{request['video']['path']}: cannot be decoded: {type(error).__name__}: {what}"
            yield {"error": message, "kind": "video"}, None

    def _opened(self, named: dict[str, Any]) -> Video:
        if self._video is None or named != self._named:
            self._close()
            self._video = self._open_video(**named)
            self._named = named
        return self._video

    def _close(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = self._named = None


def _pipes() -> tuple[BinaryIO, _Whole]:
    """Both ends, moved out of the way of a library that reads standard input or prints on standard output."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    return requests, _Whole(replies)


class _Whole:
    """A pipe whose write() writes all of it."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipe.write(rest) :]


def _protect(memory: int) -> None:
    # An interrupt from the keyboard is for the parent, which then ends this process by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_decoders()
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _import_decoders() -> None:
    """The default decoders, before memory is counted."""
    import av  # noqa: F401

    try:
        import decord  # noqa: F401
    except (ImportError, OSError):
        return


def _send(pipe: _Whole, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    pipe.write(LENGTH.pack(len(data)) + data)


def _receive(pipe: BinaryIO) -> dict[str, Any] | None:
    """The next request, None where the parent is gone."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    data = pipe.read(LENGTH.unpack(head)[0])
    request: dict[str, Any] = json.loads(data)
    return request
