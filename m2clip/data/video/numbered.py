"""The frames of a stream as PyAV decodes them from a key packet on, each with the number of its packet."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2clip.data.video.container import open_container
from m2clip.data.video.packets import Packets

if TYPE_CHECKING:
    import av

# Containers whose packets carry a presentation time and whose seeking lands on the key frame asked for.
TIMED = frozenset(["mov", "mp4", "matroska", "webm"])
# Containers for transmission: their times are sound unless something was lost, and they are sought by position.
STREAMED = frozenset(["mpegts", "mpeg"])
# More packets than any decoder holds back.
DELAY = 64


class NumberedFrames:
    """An open stream; who uses it says what its packets are (`_found`) and in which order they are shown (`_order`)."""

    _found: Packets
    _order: np.ndarray | None
    _passes_over: bool  # whether frames that no other refers to may be left out

    def __init__(self, path: Path) -> None:
        self.path, self._choice = path, 0
        self._container, self._stream = open_container(path)

    @property
    def _kinds(self) -> set[str]:
        return set(self._container.format.name.split(","))

    def _rewind(self) -> None:
        self._container.close()
        self._container, self._stream = open_container(self.path, self._choice)

    def _go_to(self, key: int | None) -> None:
        """Go to a key packet or, without one, to the start. A seek may land elsewhere, which is noticed later."""
        import av

        found = self._found
        if key is None:
            self._rewind()
        elif self._kinds & STREAMED:
            place = int(found.places[np.searchsorted(found.keys, key)])
            self._container.seek(place, stream=self._stream, unsupported_byte_offset=True)
        else:
            try:
                self._container.seek(int(found.stamps[key]), stream=self._stream, backward=True, any_frame=False)
            except av.FFmpegError:
                # Matroska takes no time before 0, where a stream may start.
                self._rewind()

    def _packets(self) -> closing[Any]:
        """The packets from the current position. PyAV must close what it leaves unfinished, or memory is lost."""
        packets: Any = self._container.demux(self._stream)
        return closing(packets)

    def _decoded_from(self, key: int | None, wanted: set[int] | None = None) -> Generator[av.VideoFrame]:
        """Frames as the decoder gives them, each with the number of its packet as its time.

        Args:
            key: key packet to start from, None for the start of the file. Nothing is given if a seek lands after it.
            wanted: the packets whose frames are wanted; default all. Others may be left out.
        """
        import av

        self._go_to(key)
        context = self._stream.codec_context
        passes_over = self._passes_over and wanted is not None
        if not context.is_open:
            # Some decoders take from the moment at which they are opened for good what they may leave out.
            context.open(strict=False)
        needed = self._needed(wanted) if wanted else set()
        number = -1 if key is None else None
        last = max(wanted) + DELAY if wanted else math.inf
        with self._packets() as packets:
            for packet in packets:
                if packet.size:
                    if number is not None:
                        number += 1
                    elif (number := self._found.key_at(packet.pos)) is None:
                        continue
                    elif key is not None and number > key:
                        return
                    if number > last:
                        return
                    packet.pts = number
                    # Frames that no other frame refers to need not be decoded unless they are asked for.
                    context.skip_frame = "NONREF" if passes_over and number not in needed else "DEFAULT"
                try:
                    yield from packet.decode()
                except (av.error.InvalidDataError, av.error.PermissionError):
                    # The latter is what the -1 of older decoders reads as.
                    continue

    def _needed(self, wanted: set[int]) -> set[int]:
        """The packets that must be decoded in full for the frames of others: those whose pictures wait with them."""
        chain = self._found.coding.chain
        needed = {number - step for number in wanted for step in range(chain + 1)}
        if chain and self._order is not None and self._order[-1] in wanted:
            # The last frame comes at the end, under the number of the last picture that was looked at.
            needed.update(range(int(self._order[-1]), len(self._found.stamps)))
        return needed

    def close(self) -> None:
        """Release the file."""
        self._container.close()
