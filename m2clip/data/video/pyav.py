"""PyAV as a video reader: seeks where the frames that this gives are proven to be those of decoding from the start."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2clip.data.video.base import Video, VideoError, check_length, check_size, collect
from m2clip.data.video.coded_order import coded_order
from m2clip.data.video.container import reason
from m2clip.data.video.display import Upright, displayed_size
from m2clip.data.video.length import declared_frames, frame_rate
from m2clip.data.video.numbered import STREAMED, TIMED, NumberedFrames
from m2clip.data.video.packets import scan, steady

if TYPE_CHECKING:
    import av

_SOUGHT_BY_TIME = TIMED | {"avi"}
# Frames that are decoded to see whether the decoder agrees with an order.
_TRIAL = 12


class PyAVVideo(NumberedFrames, Video):
    """PyAV. Frame i is the i-th that decoding from the start gives; it is sought by key frame where that is proven.

    Attributes:
        times: when the frames are shown, in the stream's unit; None where that is unknown.
        plain: whether every packet of the only stream is a frame to show, none shown before the key frame it follows.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._shown = Upright()
        try:
            self._scan()
            # One picture beside a longer stream is a cover, whether it is marked as one or not.
            others = len(self._container.streams.video) - 1
            while self.num_frames <= 1 and self._choice < others:
                self._choice += 1
                self._rewind()
                self._scan()
            if self.num_frames <= 1 and others:
                self._choice = 0
                self._rewind()
                self._scan()
            if not self.num_frames:
                raise VideoError(f"{path}: has a video stream of 0 frames")
            self.fps = frame_rate(path, self._stream, self.num_frames, self.times)
            self.declared = declared_frames(self._container, self._stream, self._found, self.times, self.fps)
        except BaseException:
            self.close()
            raise

    def _scan(self) -> None:
        import av

        stream, kinds = self._stream, self._kinds
        check_length(self.path, stream.frames)
        context = stream.codec_context
        # What the header says; the decoder changes it as it goes.
        self._size, self._size_is_known = (context.width, context.height), False
        coded = coded_order(context.name, context.extradata or b"", untimed=not kinds & (TIMED | STREAMED))
        try:
            with self._packets() as packets:
                self._found = scan(
                    self.path, packets, coded, strict=bool(kinds & _SOUGHT_BY_TIME), timed="avi" not in kinds
                )
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: truncated or damaged: {reason(error)}") from None
        # A file that is cut just between two frames ends without an error; its index tells.
        if "mp4" in kinds and self._found.slots < len(stream.index_entries):
            raise VideoError(f"{self.path}: truncated or damaged: it ends after {self._found.slots} frames")
        self._seekable = self._found.placed and bool(kinds & (_SOUGHT_BY_TIME | STREAMED))
        self._passes_over = self._found.coding.skips
        try:
            order = self._order_without_decoding()
            if order is None:
                order = self._decode_all()
                # Every frame came out, so none is damaged or hidden: what follows a key frame does not depend on more.
                whole = order is not None and len(order) == len(self._found.stamps) and not self._found.corrupt
                self._seekable &= whole
                self._passes_over = whole and context.name != "mpeg4"
            else:
                self.num_frames = len(order)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be decoded: {reason(error)}") from None
        self._order = order
        times = self._found.times(order)
        self.times = times if times is None or len(times) == self.num_frames else None
        # What a decoder shows where frames are missing depends on all others.
        self._passes_over &= self.times is None or steady(self.times)
        if order is not None:
            self._keys, self._key_ranks = self._found.key_ranks(order)
        self.plain = len(self._container.streams.video) == 1 and self._is_plain()

    def _is_plain(self) -> bool:
        order, kinds = self._order, self._kinds
        if order is None or len(order) != len(self._found.stamps):
            return False
        if kinds & TIMED:
            in_turn = len(order) < 2 or (np.diff(self._found.stamps[order]) > 0).all()
            return bool(in_turn) and self._found.follow_keys()
        # Times that FFmpeg guesses mislead others, and so do files in which every frame is marked as a key frame.
        marked = self._stream.codec_context.codec.intra_only or len(self._found.keys) < len(order)
        in_turn = not self._found.guessed and (order == np.arange(len(order), dtype=np.int32)).all()
        return bool("avi" in kinds and marked and in_turn)

    def _order_without_decoding(self) -> np.ndarray | None:
        """The numbers of the frames' packets in the order that decoding gives, None where only decoding can tell."""
        found, kinds, codec = self._found, self._kinds, self._stream.codec_context.codec
        # An mp4 that starts with another frame than a key frame is damaged, not cut.
        cut = "mp4" not in kinds or not len(found.keys) or found.keys[0] == 0
        by_time, coded = found.by_time(cut), found.coded
        if codec.name == "mpeg4" or not kinds & (TIMED | STREAMED):
            if coded is None:
                return None
            coded = coded if found.shown.all() else coded[found.shown[coded]]
            sound = kinds & TIMED and by_time is not None and np.array_equal(by_time, coded)
            return coded if sound or self._agrees(coded) else None
        if by_time is None or not len(by_time):
            return None
        if kinds & STREAMED:
            sound = not found.corrupt and steady(found.stamps[by_time])
            return by_time if sound and self._agrees(by_time) and self._ends(by_time) else None
        # A decoder that reorders frames contradicts times in the order of the file: those of a copy from AVI.
        reorders = codec.reorder and self._stream.codec_context.has_b_frames
        if reorders and len(by_time) > 2 and (np.diff(by_time) > 0).all():
            return None
        return by_time if not (cut and found.starts_late) or self._agrees(by_time) else None

    def _agrees(self, order: np.ndarray) -> bool:
        """Whether the decoder gives the first frames in this order, up to the first that is given out of turn."""
        count = max(self._found.coding.lone + 2, _TRIAL)
        start = 0 if self._seekable and self._found.keys[0] == 0 else None
        numbers: list[int | None] = []
        with closing(self._decoded_from(start)) as frames:
            for frame in frames:
                if not numbers:
                    self._size, self._size_is_known = (frame.width, frame.height), True
                numbers.append(frame.pts)
                if len(numbers) == count:
                    break
        return numbers == order[:count].tolist()

    def _ends(self, order: np.ndarray) -> bool:
        """Whether the decoder gives the frames from the last key frame on in this order."""
        key = int(self._found.keys[-1])
        expected = order[np.flatnonzero(order == key)[0] :].tolist() if key in order else None
        with closing(self._decoded_from(key)) as frames:
            numbers = [frame.pts for frame in frames]
        return key in numbers and numbers[numbers.index(key) :] == expected

    def _decode_all(self) -> np.ndarray | None:
        """Decode from start to end, for the number of frames and their order; None where frames are not told apart."""
        numbers = array("i")
        known = True
        with closing(self._decoded_from(None)) as frames:
            for frame in frames:
                if not numbers:
                    self._size, self._size_is_known = (frame.width, frame.height), True
                known &= frame.pts is not None
                numbers.append(frame.pts if frame.pts is not None else -1)
        self.num_frames = len(numbers)
        order = np.asarray(numbers, np.int32)
        return order if known and len(np.unique(order)) == len(order) else None

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        return collect(self.path, indices, self._each_sorted(indices))

    def _each_sorted(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        import av

        shapes: dict[int, tuple[int, ...]] = {}
        try:
            for index, frame in self._read(indices):
                shapes[index] = frame.shape
                yield index, frame
        except (av.FFmpegError, ValueError) as error:
            # PyAV gives a ValueError where a pixel format cannot be converted to RGB.
            raise VideoError(f"{self.path}: cannot be decoded: {reason(error)}") from None
        missing = next((index for index in indices if index not in shapes), None)
        if missing is not None:
            raise VideoError(f"{self.path}: damaged: frame {missing} of {self.num_frames} cannot be decoded")
        if len(set(shapes.values())) > 1:
            raise VideoError(f"{self.path}: the frames change between upright and lying within the video")

    def _read(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Ascending indices and their frames, all of them again where the first frame turns out to be of another size.

        It ends early where a frame cannot be found.
        """
        find = self._find_by_count if self._order is None else self._find
        try:
            yield from find(indices)
        except _OtherSizeError:
            self._size, self._size_is_known = self._size_of_first(), True
            yield from find(indices)

    def _find(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        while done < len(indices):
            key = self._key_before(indices[done])
            # The run of wanted frames that no later key frame is closer to is decoded in one go.
            stop = done + 1
            while stop < len(indices) and self._key_before(indices[stop]) == key:
                stop += 1
            run = indices[done:stop]
            # A seek may land late in a file with a broken index; the start of the file is always right. It is tried
            # again where frames were passed over that what is shown for damaged ones depends on.
            for start in (key, None):
                if (yield from self._decode_run(run, start)):
                    break
            else:
                return
            done = stop

    def _find_by_count(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        wanted = set(indices)
        with closing(self._decoded_from(None)) as frames:
            for rank, frame in enumerate(frames):
                if rank in wanted:
                    yield rank, self._upright(frame)
                if rank >= indices[-1]:
                    break

    def _key_before(self, index: int) -> int | None:
        """The last key packet that a frame can be decoded from, None for the start of the file."""
        rank = bisect_right(self._key_ranks, index) - 1 if self._seekable else -1
        return int(self._keys[rank]) if rank >= 0 else None

    def _decode_run(self, indices: list[int], key: int | None) -> Generator[tuple[int, np.ndarray], None, bool]:
        """Indices and frames decoded from one key packet; returns whether all of them came."""
        assert self._order is not None
        wanted = dict(zip(self._order[indices].tolist(), indices, strict=True))
        left = set(wanted)
        # Frames that are shown before the key frame they follow lack what they refer to.
        started = key is None
        with closing(self._decoded_from(key, set(wanted))) as frames:
            for frame in frames:
                started |= frame.pts == key
                if frame.pts == key and not _stands_alone(frame):
                    self._seekable = False
                    return False
                if started and frame.is_corrupt and (key is not None or self._passes_over):
                    # What a decoder shows for a damaged frame depends on all that it decoded before.
                    self._seekable = self._passes_over = False
                    return False
                if frame.pts in left:
                    left.remove(frame.pts)
                    yield wanted[frame.pts], self._upright(frame)
                    if not left:
                        break
        return not left

    def first_frame(self) -> av.VideoFrame:
        """Frame 0 as it is coded.

        Raises:
            VideoError: it cannot be decoded.
        """
        import av

        try:
            for key in dict.fromkeys((self._key_before(0), None)):
                with closing(self._decoded_from(key)) as frames:
                    for frame in frames:
                        if self._order is None or frame.pts == self._order[0]:
                            return frame
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be decoded: {reason(error)}") from None
        raise VideoError(f"{self.path}: damaged: frame 0 of {self.num_frames} cannot be decoded")

    def _size_of_first(self) -> tuple[int, int]:
        frame = self.first_frame()
        return frame.width, frame.height

    @property
    def pixel_shape(self) -> float:
        """Width of a pixel over its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """(3, H, W) uint8 of one decoded frame as it is shown: in the size of the first, with square pixels, turned."""
        check_size(self.path, frame.width, frame.height)
        if not self._size_is_known and (frame.width, frame.height) != self._size:
            raise _OtherSizeError
        width, height = displayed_size(*self._size, self.pixel_shape)
        check_size(self.path, width, height)
        return self._shown(frame, width, height)

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        if self.times is None or self._stream.time_base is None:
            return super().seconds(indices)
        return [float(int(self.times[index] - self.times[0]) * self._stream.time_base) for index in indices]


class _OtherSizeError(Exception):
    """A frame is not of the size that the header gives for the first."""


def _stands_alone(frame: av.VideoFrame) -> bool:
    """Whether a frame refers to no other."""
    return bool(frame.key_frame) or int(frame.pict_type) in (0, 1)
