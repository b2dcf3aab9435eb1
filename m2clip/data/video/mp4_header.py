"""What an mp4 file's header announces, read before a decoder makes tables of that length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

# What the first box of an mp4 or mov file is, in the bytes 4 to 8.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
# The boxes that lead to the tables of sample sizes, whose count is at the same place in both.
_INSIDE: dict[bytes, tuple[bytes, ...]] = {
    b"moov": (b"trak",),
    b"trak": (b"mdia",),
    b"mdia": (b"minf",),
    b"minf": (b"stbl",),
    b"stbl": (b"stsz", b"stz2"),
}
# Real files have a few dozen boxes; what comes after these is not looked at.
_MOST_BOXES = 1000


def announced_frames(path: Path) -> int:
    """The largest number of samples that a track of an mp4 or mov file announces; 0 for a file of another kind."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        return _largest(file, 0, end, (b"moov",), [_MOST_BOXES])


def _largest(file: BinaryIO, start: int, end: int, wanted: tuple[bytes, ...], left: list[int]) -> int:
    """The largest count in the boxes `wanted` between two positions, and in what they hold."""
    largest = 0
    while start + 8 <= end and left[0]:
        left[0] -= 1
        file.seek(start)
        head = file.read(20)
        size, kind = struct.unpack(">I4s", head[:8])
        content = start + 8
        if size == 1 and len(head) >= 16:
            (size,) = struct.unpack(">Q", head[8:16])
            content += 8
        stop = min(start + size, end) if size else end
        if stop < content:
            break
        if kind in wanted and kind in _INSIDE:
            largest = max(largest, _largest(file, content, stop, _INSIDE[kind], left))
        elif kind in wanted and len(head) == 20:
            largest = max(largest, struct.unpack(">I", head[16:20])[0])
        start = stop
    return largest
