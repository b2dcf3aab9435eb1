"""A decoding process that does what the file's name says: what damaged files do to decoders only now and then."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from m2clip.data.video import decoder_child
from m2clip.data.video.readers import Video, open_video


class Hostile(Video):
    """Well behaved until frames are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.num_frames, self.fps = path, 8, 25.0

    def _read_sorted(self, indices: list[int]) -> Any:
        misbehave(self.path.stem.removeprefix("read_"))


def misbehave(how: str) -> None:
    if how == "segfault":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(3)
    elif how == "hang":
        # Holds the interpreter's lock, as a decoder in an endless loop does: no signal handler in Python would run.
        ctypes.PyDLL(None).sleep(100)
    elif how == "sleep":
        time.sleep(100)
    elif how == "bloat":
        bytearray(1 << 40)
    elif how == "type_error":
        raise TypeError("a decoder's binding\nfell over")
    elif how == "print":
        os.write(1, b"\0" * 100)
        sys.stdout.write("chatter")
        sys.stdout.flush()


def open_hostile(path: str, reader: str, **more: Any) -> Video:
    stem = Path(path).stem
    if Path(path).suffix != ".bad":
        return open_video(path, reader, **more)
    if stem.startswith("read_"):
        return Hostile(Path(path))
    misbehave(stem)
    return Hostile(Path(path))


def main(memory: int) -> None:
    decoder_child.main(memory, open_hostile)
