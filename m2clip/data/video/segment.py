"""The frames of a part of a video, read from the last key frame before it.

In containers whose packets carry times of presentation and that are sought by them, only the packets are read from the
last key frame before the segment to its end. Files stay open from one segment to the next, since the index of a long
file takes long to read. Where the packets leave a doubt of which frames these are, and of all other kinds of files, the
whole file is scanned, once for as long as it stays open.
"""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2clip.data.segment import Segment, seconds_text
from m2clip.data.video.base import Video, VideoError, check_file, collect, is_folder
from m2clip.data.video.container import open_container
from m2clip.data.video.display import Upright
from m2clip.data.video.numbered import DELAY, TIMED
from m2clip.data.video.packets import scan, steady
from m2clip.data.video.pictures import is_webp
from m2clip.data.video.pyav import PyAVVideo

if TYPE_CHECKING:
    import av

MOST_OPEN = 8  # files that stay open in a process
# A moment is rounded otherwise than the time of a frame that it is meant to be.
_MOMENT = 1e-6
# Seconds that a segment may end after its video: lists round their times.
_ROUNDING = 0.1
# Seconds that sound or other streams may go on after the last frame, which players then show.
_STILL = 1.0


class SegmentError(VideoError):
    """A segment that its video does not have; the message is one line."""


class SegmentVideo(Video):
    """A segment of a video: its frames are numbered from 0, and `seconds` counts from the first of them.

    Args:
        path: the file.
        segment: which part, with nothing wrong in itself.
        open_whole: opens all of the video, where that is needed.

    Raises:
        SegmentError: it starts or ends after the video.
        VideoError: the video cannot be read, or has no times.
    """

    def __init__(self, path: Path, segment: Segment, open_whole: Callable[[], Video]) -> None:
        self.path, self.segment, self._open_whole = path, segment, open_whole
        self._identity = _identity(path)
        self._file: OpenFile | OpenWhole | None = _open_files.take(self._identity) or self._open()
        try:
            self._find_frames()
        except BaseException:
            # The file itself may well be sound.
            self.close()
            raise

    def _open(self) -> OpenFile | OpenWhole:
        """The file to seek segments in or, where that cannot be, all of the video."""
        if is_folder(self.path) or is_webp(check_file(self.path)):
            return self._opened_whole()
        container, stream = open_container(self.path)
        try:
            if set(container.format.name.split(",")) & TIMED and len(container.streams.video) == 1:
                zero = _first_time(container, stream)
                if zero is not None and stream.codec_context.name != "mpeg4":
                    size = stream.codec_context.width, stream.codec_context.height
                    return OpenFile(container, stream, zero, size)
        except BaseException:
            container.close()
            raise
        container.close()
        return self._opened_whole()

    def _opened_whole(self) -> OpenWhole:
        video = self._open_whole()
        seconds = video.seconds(range(video.num_frames))
        if seconds is None:
            video.close()
            raise VideoError(f"{self.path}: its frames have no times, which a segment in seconds needs")
        return OpenWhole(video, seconds)

    def _take_whole(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._file = self._opened_whole()
        self._find_frames()

    def _find_frames(self) -> None:
        """Which frames of the file, or of the packets of the segment, these are."""
        if isinstance(self._file, OpenWhole):
            video, seconds = self._file.video, self._file.seconds
            self._check_end(video, seconds[-1], seconds[-1])
        else:
            assert self._file is not None
            try:
                video = window = Window(self.path, self.segment, self._file)
            except _DoubtError:
                self._take_whole()
                return
            seconds = window.seconds(range(window.num_frames))
            if window.to_the_end:
                self._check_end(window, seconds[-1], window.length)
        first, last = (bisect_left(seconds, moment - _MOMENT) for moment in self.segment)
        # Where none begins in the segment, it shows the one before.
        self._first = first = first if first < last else max(last - 1, 0)
        self._video, self._seconds = video, seconds[first : max(last, first + 1)]
        self.num_frames = len(self._seconds)
        length = self._seconds[-1] - self._seconds[0]
        self.fps = (self.num_frames - 1) / length if length > 0 else video.fps

    def _check_end(self, video: Video, last: float, length: float) -> None:
        """Refuse a segment after the video.

        Args:
            video: what has the frame rate.
            last: when the last frame begins.
            length: of the file, in seconds after the first frame.
        """
        shown = last + (0.0 if math.isnan(video.fps) else 1 / video.fps)
        end = length if shown < length <= shown + _STILL else shown
        if self.segment.start < shown and self.segment.end <= end + _ROUNDING:
            return
        where = "ends" if self.segment.start < shown else "starts"
        lasts = seconds_text(round(end, 2))
        raise SegmentError(f"{self.path}: the segment {self.segment} {where} after the video, which lasts {lasts} s")

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        return collect(self.path, indices, self._each_sorted(indices))

    def _each_sorted(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        try:
            yield from self._each_of_video(indices)
        except _DoubtError:
            number = self.num_frames
            self._take_whole()
            if self.num_frames != number:
                raise VideoError(
                    f"{self.path}: damaged: its frames from {self.segment} are not those that are announced"
                ) from None
            yield from self._each_of_video(indices)

    def _each_of_video(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for index, frame in self._video.each([self._first + index for index in indices]):
            yield index - self._first, frame

    def seconds(self, indices: Sequence[int]) -> list[float]:
        return [self._seconds[index] - self._seconds[0] for index in indices]

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            _open_files.give(self._identity, file)


class _DoubtError(Exception):
    """A few packets do not tell which frames the whole file would give."""


@dataclass(frozen=True)
class OpenFile:
    """A file in which segments can be sought.

    Attributes:
        zero: when the first frame is shown, in the stream's unit.
        size: width and height of a frame as the header gives them.
    """

    container: av.container.InputContainer
    stream: av.video.stream.VideoStream
    zero: int
    size: tuple[int, int]

    def close(self) -> None:
        """Release the file."""
        self.container.close()


@dataclass(frozen=True)
class OpenWhole:
    """A video of which all frames are known, and when each is shown in seconds."""

    video: Video
    seconds: list[float]

    def close(self) -> None:
        """Release the file."""
        self.video.close()


class Window(PyAVVideo):
    """The packets of a file from the last key frame before a segment to the segment's end; times are the file's.

    Attributes:
        to_the_end: whether the last packet is that of the file.
        length: how long the file says that it is, in seconds after the first frame; 0 where it says nothing.
    """

    def __init__(self, path: Path, segment: Segment, file: OpenFile) -> None:
        self.path, self._choice, self._shown = path, 0, Upright()
        self._container, self._stream, self._zero = file.container, file.stream, file.zero
        self._size, self._size_is_known = file.size, False
        assert self._stream.time_base is not None
        self._unit = float(self._stream.time_base)
        self.to_the_end = False
        duration, start = self._container.duration, self._container.start_time
        self.length = 0.0 if duration is None else ((start or 0) + duration) / 1e6 - self._zero * self._unit
        self._read_packets(segment)

    def _read_packets(self, segment: Segment) -> None:
        import av

        stream, codec = self._stream, self._stream.codec_context
        sought = self._zero + math.floor((segment.start + _MOMENT) / self._unit)
        try:
            self._container.seek(sought, stream=stream, backward=True, any_frame=False)
            with self._packets() as packets:
                until = self._zero + math.ceil(segment.end / self._unit)
                self._found = found = scan(self.path, self._up_to(packets, until), None, strict=True, timed=True)
        except (av.FFmpegError, VideoError, OverflowError):
            raise _DoubtError from None
        order = found.by_time(cut=True)
        if order is None or not len(order) or found.keys[0] != 0 or not found.placed:
            raise _DoubtError
        if found.stamps[0] > sought:
            raise _DoubtError
        # Times in the order of the file where the decoder reorders are those of a copy from AVI, and show no delay.
        if codec.codec.reorder and codec.has_b_frames and not found.guessed and (np.diff(order) > 0).all():
            raise _DoubtError
        self._order, self.num_frames = order, len(order)
        self.times = found.stamps[order]
        self._keys, self._key_ranks = found.key_ranks(order)
        self._seekable, self._passes_over = len(self._keys) > 0, steady(self.times)
        if not self._seekable:
            raise _DoubtError
        length = float(self.times[-1] - self.times[0]) * self._unit
        self.fps = (self.num_frames - 1) / length if length > 0 else float(stream.average_rate or math.nan)

    def _up_to(self, packets: Iterator[av.Packet], end: int) -> Iterator[av.Packet]:
        """The packets until all that are shown before a time have come."""
        place = None
        for packet in packets:
            if packet.size:
                if packet.pts is None or packet.dts is None or packet.pts < packet.dts:
                    raise _DoubtError
                place = packet.pos
            yield packet
            if packet.size and packet.dts is not None and packet.dts >= end:
                return
        self.to_the_end = True
        # A file that is cut just between two frames ends without an error; its index tells.
        if "mp4" in self._kinds:
            index = self._stream.index_entries
            if place is None or index[len(index) - 1].pos != place:
                raise _DoubtError

    def seconds(self, indices: Sequence[int]) -> list[float]:
        assert self.times is not None and self._stream.time_base is not None
        return [float(int(self.times[index] - self._zero) * self._stream.time_base) for index in indices]

    def _rewind(self) -> None:
        raise _DoubtError

    def _size_of_first(self) -> tuple[int, int]:
        raise _DoubtError


def _first_time(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> int | None:
    """When the first frame is shown; None where that is not certain without decoding."""
    import av

    shown: list[int] = []
    key = None
    packets = container.demux(stream)
    try:
        with closing(packets):  # type: ignore[type-var]
            for packet in packets:
                if not packet.size:
                    continue
                if packet.pts is None or (key is None and not packet.is_keyframe):
                    return None
                key = packet.pts if key is None else key
                if not packet.is_discard:
                    shown.append(packet.pts)
                if len(shown) == DELAY:
                    break
    except av.FFmpegError:
        return None
    # Frames before the first key frame may be left out by the decoder.
    return min(shown) if shown and key is not None and min(shown) >= key else None


class _OpenFiles:
    """Files that wait for their next segment, each lent to one at a time; the one used longest ago is closed first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[object, ...], OpenFile | OpenWhole] = OrderedDict()

    def take(self, identity: tuple[object, ...]) -> OpenFile | OpenWhole | None:
        with self._lock:
            return self._files.pop(identity, None)

    def give(self, identity: tuple[object, ...], file: OpenFile | OpenWhole) -> None:
        with self._lock:
            surplus = [self._files.pop(identity, None)]
            self._files[identity] = file
            while len(self._files) > MOST_OPEN:
                surplus.append(self._files.popitem(last=False)[1])
        for one in surplus:
            if one is not None and one is not file:
                one.close()

    def forget(self) -> None:
        """In a forked process, whose reads would move the other's place in a file."""
        self.__init__()  # type: ignore[misc]


_open_files = _OpenFiles()
os.register_at_fork(after_in_child=_open_files.forget)


def _identity(path: Path) -> tuple[object, ...]:
    """What tells a file from all others, and from what it was before it was replaced."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return (str(path),)
    return (os.path.abspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
