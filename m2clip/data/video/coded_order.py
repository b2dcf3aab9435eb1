"""The order in which a decoder gives frames, where the coded data alone prove it.

AVI has no presentation times, and copies of such streams in other containers have wrong ones. The order follows from
the kinds of pictures (ISO/IEC 14496-2, 6.2.5; ITU-T H.264, 7.3.3): one that others are predicted from is given when the
next such picture comes, one that is predicted from both sides is given at once.
"""

from __future__ import annotations

import re
from array import array

# Every packet is one frame, given at once.
_FRAME_BY_FRAME = frozenset(
    ("mjpeg", "rawvideo", "dvvideo", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h263", "flv", "huffyuv", "ffvhuff", "ffv1")
    + ("utvideo", "gif", "apng", "png", "bmp", "qtrle")
)
_VOP = b"\0\0\1\xb6"
_VOL = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
# The largest packet that a decoder drops when it decodes a picture from the packet before in its place.
_MOST_BYTES_DROPPED = 7
# A slice of H.264 that is not partitioned, of any importance.
_SLICE = re.compile(rb"\x00\x00\x01[\x01\x21\x41\x61\x25\x45\x65](.{1,8})", re.DOTALL)


class CodedOrder:
    """Follows the packets of a stream.

    Attributes:
        order: after `finish`, the number of its packet for every frame in the order in which they are given.
        keys: numbers of the packets from which decoding can start; None where the container tells them.
        lone: number of frames at the start of `order` up to the first that is predicted from both sides, 0 without any.
        chain: most packets in a row that are decoded one packet later.
        skips: whether frames that no other refers to can be passed over without a trace.
        proven: whether `order` is certain.
    """

    keys: array[int] | None = None
    lone = 0
    chain = 0
    skips = True
    proven = True

    def __init__(self) -> None:
        self.order = array("i")

    def add(self, number: int, data: bytes) -> None:
        """Take in the packet of this number."""
        self.order.append(number)

    def finish(self) -> None:
        """Take in the end of the stream."""


class _Unreordered(CodedOrder):
    """H.264 without pictures that are predicted from both sides."""

    def add(self, number: int, data: bytes) -> None:
        self.order.append(number)
        found = _SLICE.search(data)
        if found is None:
            self.proven = False
        elif self.proven:
            bits = _Bits(found[1])
            bits.golomb()  # number of the first block
            self.proven = bits.golomb() % 5 != 1


class _Mpeg4(CodedOrder):
    """MPEG-4 part 2, also with two pictures in one packet, as DivX and XviD pack them for AVI."""

    def __init__(self, header: bytes) -> None:
        super().__init__()
        self.keys = array("i")
        self._time_bits = 0
        self._layer = b""
        self._reference: int | None = None
        self._references = 0
        self._waits = self._time = 0
        self._repeats_last = False
        self._read_header(header)
        # Encoders write the first packet's layer otherwise than the header's, which no frame waits for.
        self._layer = b""

    def add(self, number: int, data: bytes) -> None:
        first = data.find(_VOP)
        if first < 0:
            # DivX writes one byte where nothing changes.
            self._repeats_last = len(data) == 1
            self.proven &= self._repeats_last and not self._waits
            return
        if first:
            self._read_header(data[:first])
        kind, coded, time = self._picture(data[first + 4 :])
        second = data.find(_VOP, first + 4)
        if self._waits:
            # The second picture of the packet before is decoded in the place of this one, which waits itself.
            self._give(number, 2)
            self._waits = self._waits + 1 if coded else 0
            self.chain = max(self.chain, self._waits)
            self.proven &= second < 0 and (kind == 2 if coded else len(data) <= _MOST_BYTES_DROPPED)
            # Where the waiting picture is passed over, the time of this one counts.
            self.skips &= coded or time == (0, self._time)
            return
        self._repeats_last = not coded
        if coded:
            self._give(number, kind)
            self._time = self._time if kind == 2 else time[1]
        if second >= 0:
            self._waits = 1
            self.chain = max(self.chain, 1)
            self.proven &= coded and self._picture(data[second + 4 :])[:2] == (2, True)
            self.proven &= data.find(_VOP, second + 4) < 0

    def finish(self) -> None:
        if self._reference is not None:
            self.order.append(self._reference)
        # A decoder may give the last frame twice.
        self.proven &= not self._repeats_last

    def _give(self, number: int, kind: int) -> None:
        if kind == 2:
            if self._references > 1:
                self.order.append(number)
                self.lone = self.lone or len(self.order)
            return
        if self._reference is not None:
            self.order.append(self._reference)
        self._reference = number
        self._references += 1
        if kind == 0:
            assert self.keys is not None
            self.keys.append(number)

    def _picture(self, data: bytes) -> tuple[int, bool, tuple[int, int]]:
        """What the header of a picture says.

        Returns:
            Kind (0: on its own, 1: from before, 2: from both sides, 3: warped); whether there is a picture; whole
            seconds since the last one and the time within a second.
        """
        bits = _Bits(data[:24])
        kind, seconds = bits.read(2), 0
        while bits.read(1):
            seconds += 1
        self.proven &= self._time_bits > 0
        bits.read(1)
        within = bits.read(self._time_bits)
        bits.read(1)
        return kind, bool(bits.read(1)), (seconds, within)

    def _read_header(self, data: bytes) -> None:
        """Take the length of a picture's time from the header of the layer, if there is one."""
        found = _VOL.search(data)
        if found is None:
            return
        layer = data[found.end() : found.end() + 40].partition(b"\0\0\1")[0]
        # Where another layer begins, a decoder may drop the frame that waits.
        self.proven &= self._layer in (b"", layer)
        self._layer = layer
        bits = _Bits(layer)
        bits.read(1 + 8)
        version = bits.read(4 + 3) >> 3 if bits.read(1) else 1
        if bits.read(4) == 15:
            bits.read(8 + 8)  # shape of a pixel
        if bits.read(1):
            bits.read(2 + 1)
            if bits.read(1):
                bits.read(79)  # sizes of the decoder's buffer
        if bits.read(2) == 3 and version != 1:
            bits.read(4)
        bits.read(1)
        self._time_bits = max((bits.read(16) - 1).bit_length(), 1)


class _Bits:
    """Reads bits from the start of some bytes; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def golomb(self) -> int:
        """A number in Exp-Golomb code."""
        zeros = 0
        while self._left > 0 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def coded_order(codec: str, header: bytes, untimed: bool) -> CodedOrder | None:
    """What follows the packets of a stream; None for a codec whose order is not proven here.

    Args:
        codec: FFmpeg's name of the codec.
        header: the stream's header outside its packets.
        untimed: whether the container gives its packets no presentation times.
    """
    if codec == "mpeg4":
        return _Mpeg4(header)
    if untimed and codec in _FRAME_BY_FRAME:
        return CodedOrder()
    # Without a header of its own the stream is cut by start codes.
    if untimed and codec == "h264" and not header.startswith(b"\1"):
        return _Unreordered()
    return None
