"""The scan of a file's packets that defines its frames, for every reader."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2clip.data.video.base import VideoError, check_length
from m2clip.data.video.coded_order import CodedOrder

if TYPE_CHECKING:
    import av

NO_TIME = -(1 << 63)
# Times of a steady frame rate differ from it by rounding, one unit up or down.
_ROUNDING = 2


@dataclass(frozen=True, eq=False)
class Packets:
    """What is known of the packets that hold data, numbered from 0 in the order of the file.

    Attributes:
        stamps: (n,) their times in the stream's unit, NO_TIME without one: of presentation or, in AVI, which has only
            these, of decoding.
        timed: whether they are times of presentation.
        guessed: whether FFmpeg's times of presentation differ from those of decoding.
        shown: (n,) whether players show the frame.
        keys: numbers of the packets from which decoding can start, ascending.
        places: their positions in the file in bytes, -1 where they are unknown.
        slots: number of packets, with empty ones that stand for a frame left out when the video was recorded.
        corrupt: whether the container misses parts of some packet.
        coding: what the coded data tell.
        coded: the order of frames that they prove, None where they do not.
    """

    stamps: np.ndarray
    timed: bool
    guessed: bool
    shown: np.ndarray
    keys: np.ndarray
    places: np.ndarray
    slots: int
    corrupt: bool
    coding: CodedOrder
    coded: np.ndarray | None

    def by_time(self, cut: bool) -> np.ndarray | None:
        """Numbers of the shown packets in the order of their times; None where times are missing or the same.

        Args:
            cut: whether frames are left out that come before the first key frame and cannot be decoded: the file may
                have been cut out of a longer one.
        """
        if not len(self.keys) or (self.stamps == NO_TIME).any():
            return None
        numbers = np.flatnonzero(self.shown)
        if cut and self.starts_late:
            numbers = numbers[(numbers >= self.keys[0]) & (self.stamps[numbers] >= self.stamps[self.keys[0]])]
        numbers = numbers[np.argsort(self.stamps[numbers], kind="stable")]
        return numbers if np.diff(self.stamps[numbers]).all() else None

    @property
    def starts_late(self) -> bool:
        """Whether there are frames before the first key frame, in the file or in time."""
        return bool(self.keys[0] > 0 or (self.stamps < self.stamps[self.keys[0]]).any())

    def times(self, order: np.ndarray | None) -> np.ndarray | None:
        """Ascending times at which the frames of these packets are shown, None where they have none.

        A stream without times of presentation shows its frames in the rhythm in which they are decoded.
        """
        times = self.stamps[self.shown if order is None else order]
        times.sort()
        if not len(times) or times[0] == NO_TIME:
            return None
        if self.coding.lone and not self.timed:
            # A frame is given, and shown, when the next packet is decoded.
            times = np.append(times[1:], 2 * times[-1] - times[-2])
        return times

    def key_at(self, place: int | None) -> int | None:
        """Number of the key packet at a position in the file."""
        rank = -1 if place is None else bisect_right(self.places, place) - 1
        return int(self.keys[rank]) if rank >= 0 and self.places[rank] == place else None

    @property
    def placed(self) -> bool:
        """Whether a key packet is known by its position."""
        return bool(len(self.places) and self.places[0] >= 0 and (np.diff(self.places) > 0).all())

    def key_ranks(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Key packets and the first frame in an order that can be decoded from each, both ascending.

        All frames from the key frame on can be: only those shown before it refer to others before it.
        """
        ranks = np.full(len(self.stamps), -1, np.int32)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        ranks = ranks[self.keys]
        if not self.shown[self.keys].all():
            # Frames that are left out by an edit list have a place all the same.
            ranks = np.searchsorted(self.stamps[order], self.stamps[self.keys])
        kept = slice(None) if ranks.min(initial=0) >= 0 else ranks >= 0
        if (np.diff(ranks[kept]) < 0).any():
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return self.keys[kept], ranks[kept]

    def follow_keys(self) -> bool:
        """Whether all frames are shown, and none before the key frame that it follows in the file."""
        if not self.shown.all() or not len(self.keys) or self.keys[0] > 0 or (self.stamps == NO_TIME).any():
            return False
        lengths = np.diff(self.keys, append=len(self.stamps))
        return bool((self.stamps >= np.repeat(self.stamps[self.keys], lengths)).all())


def steady(times: np.ndarray) -> bool:
    """Whether frames are shown at a constant rate, so that none is missing between them."""
    steps = np.diff(times)
    return not len(steps) or int(steps.max() - steps.min()) <= _ROUNDING


def scan(path: Path, packets: Iterable[av.Packet], order: CodedOrder | None, strict: bool, timed: bool) -> Packets:
    """Go through all packets of a stream.

    Args:
        path: the file, for messages.
        packets: the packets from the start on.
        order: follows the coded data, if they may prove the order.
        strict: whether an incomplete packet is an error.
        timed: whether the container has times of presentation.

    Raises:
        VideoError: an incomplete packet, or too many.
    """
    # Compact: ten hours of video have two million frames.
    stamps, keys, places = array("q"), array("i"), array("q")
    shown = bytearray()
    slots, corrupt, guessed = 0, False, False
    for packet in packets:
        # An empty packet with a time stands for a frame that was left out when it was recorded.
        slots += packet.pts is not None or packet.size > 0
        if slots % 4096 == 0:
            check_length(path, slots)
        if not packet.size:
            continue
        corrupt |= packet.is_corrupt
        if corrupt and strict:
            raise VideoError(f"{path}: truncated or damaged: a frame is incomplete")
        if packet.is_keyframe:
            keys.append(len(stamps))
            places.append(-1 if packet.pos is None else packet.pos)
        if order is not None and order.proven:
            order.add(len(stamps), bytes(packet))
        stamp = packet.pts if timed else packet.dts
        stamps.append(NO_TIME if stamp is None else stamp)
        guessed |= packet.pts != packet.dts
        shown.append(not packet.is_discard)
    check_length(path, slots)
    coded = _proven(order)
    found = _array(keys), _array(places)
    if order is not None and order.keys is not None and coded is not None:
        known = np.zeros(len(stamps), bool)
        known[order.keys] = True
        found = found[0][known[found[0]]], found[1][known[found[0]]]
    coding = order or CodedOrder()
    return Packets(_array(stamps), timed, guessed, np.frombuffer(shown, bool), *found, slots, corrupt, coding, coded)


def _proven(order: CodedOrder | None) -> np.ndarray | None:
    if order is None:
        return None
    order.finish()
    return _array(order.order) if order.proven and len(order.order) else None


def _array(values: array[int]) -> np.ndarray:
    return np.frombuffer(values, values.typecode) if len(values) else np.empty(0, values.typecode)
