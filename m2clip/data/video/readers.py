"""Frames of a video by index, exactly the same ones whatever library decodes them.

Frame i is the i-th that decoding the file from its start gives: frames before the start of an edit list do not count,
and a late start, wrong times and a variable frame rate do not shift the count. Frames are shown as players show them:
turned and mirrored as the file asks, with square pixels, and all in the size of the first. Only the frames asked for
are converted and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from m2clip.data.segment import Segment
from m2clip.data.video.base import MAX_FRAMES, Video, VideoError, check_file, is_folder
from m2clip.data.video.display import is_quarter_turn
from m2clip.data.video.frame_folder import FrameFolder, check_pattern
from m2clip.data.video.pictures import IMAGE_SUFFIXES, is_webp
from m2clip.data.video.pyav import PyAVVideo
from m2clip.data.video.segment import SegmentError, SegmentVideo
from m2clip.data.video.webp import WebPVideo
from m2clip.errors import InputError

__all__ = [
    "IMAGE_SUFFIXES",
    "READERS",
    "PyAVVideo",
    "SegmentError",
    "Video",
    "VideoError",
    "check_reader",
    "open_video",
]

READERS = ("auto", "decord", "pyav", "torchcodec", "frames", "frames:NAME")


def check_reader(reader: str) -> None:
    """InputError where a reader does not exist."""
    kind, _, name = reader.partition(":")
    if reader == "frames:NAME" or reader not in READERS and (kind != "frames" or not name):
        raise InputError(
            f"unknown video reader {reader!r}; choose from {', '.join(READERS)} (the names of images, such as "
            "frames:img_{:05d}.jpg)"
        )
    if name:
        check_pattern(name)


def of_frames(reader: str) -> str:
    """The reader for folders of images where this one is for videos."""
    return reader if reader.startswith("frames") else "frames"


def open_video(
    path: str | Path,
    reader: str = "auto",
    *,
    pattern: str | None = None,
    num_frames: int | None = None,
    segment: Sequence[float] | None = None,
) -> Video:
    """Open a video for reading frames by index; use it in a `with` block.

    Args:
        path: video file, or a folder of images.
        reader: of a file: "auto" (PyAV, which passes over frames that are not wanted and that no other refers to),
            "decord", "pyav" or "torchcodec". A file that decord or torchcodec would miscount, show otherwise or cannot
            read is read by PyAV. A folder is read as "frames", its images, whatever the reader; "frames:NAME", such as
            "frames:img_{:05d}.jpg", chooses among images of several names.
        pattern: for a folder: the names of the images that are expected, with the frame number from 0 or 1
            ("img_{:05d}.jpg"). Where there are none, and by default, the names are recognised, and the images have the
            order of their numbers; optical flow, small pictures for display and hidden files beside them are left out.
        num_frames: for a folder: the number of its images; default: all.
        segment: start and end in seconds of the part whose frames are meant, as in `m2clip.data.segment.Segment`; it is
            sought by PyAV, whatever the reader.

    Raises:
        VideoError: the file is missing, empty, truncated, no video, without frames, ..., or the segment is not in it:
            one line.
        InputError: unknown reader, or its library is not installed.
    """
    path = Path(path)
    check_reader(reader)
    if segment is not None:
        part = Segment(*segment)
        if part.problem is not None:
            raise SegmentError(f"{path}: {part.problem}")
        return SegmentVideo(path, part, partial(open_video, path, reader, pattern=pattern, num_frames=num_frames))
    if is_folder(path) or reader.startswith("frames") or pattern is not None or num_frames is not None:
        return FrameFolder(path, pattern, num_frames, reader.partition(":")[2] or None)
    if is_webp(check_file(path)):
        return WebPVideo(path)
    if reader in ("auto", "pyav"):
        return PyAVVideo(path)
    if reader == "torchcodec":
        return TorchCodecVideo(path)
    return DecordVideo(path)


class _CheckedVideo(Video):
    """A second library under the frame count of PyAV's scan; whatever it cannot read, PyAV reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pyav = PyAVVideo(path)
        self.num_frames, self.fps, self.declared = self._pyav.num_frames, self._pyav.fps, self._pyav.declared
        self.uses_pyav = not self._pyav.plain or self._is_shown_otherwise() or not self._opens()

    def _is_shown_otherwise(self) -> bool:
        """Whether frames are shown in a way that other libraries do not know."""
        try:
            return self._pyav.pixel_shape != 1 or not is_quarter_turn(self._pyav.first_frame())
        except VideoError:
            return True

    def _opens(self) -> bool:
        """Open the file with the library; False where it fails or counts other frames than the scan."""
        raise NotImplementedError

    def _fetch(self, indices: list[int]) -> np.ndarray | None:
        """The frames as (n, 3, H, W) uint8, None where the library fails."""
        raise NotImplementedError

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        frames = None if self.uses_pyav else self._fetch(indices)
        if frames is None:
            self.uses_pyav = True
            return self._pyav._read_sorted(indices)
        return frames

    def _each_sorted(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        return self._pyav._each_sorted(indices) if self.uses_pyav else super()._each_sorted(indices)

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        return self._pyav.seconds(indices)

    def close(self) -> None:
        self._pyav.close()


class DecordVideo(_CheckedVideo):
    """decord. It miscounts transport streams and misses frames that are shown before the key frame they follow."""

    def _opens(self) -> bool:
        try:
            import decord
        except (ImportError, OSError) as error:
            instead = "install m2clip[decord] or use the reader 'pyav'"
            raise InputError(f"the reader 'decord' cannot be imported ({error}): {instead}") from None
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # The share of frames that may be replaced by others when they do not come: none.
            share = 1 / MAX_FRAMES
            self._reader = decord.VideoReader(str(self.path), ctx=decord.cpu(0), num_threads=1, fault_tol=share)
        except (decord.DECORDError, RuntimeError):
            return False
        return len(self._reader) == self.num_frames

    def _fetch(self, indices: list[int]) -> np.ndarray | None:
        import decord

        try:
            frames: np.ndarray = self._reader.get_batch(indices).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError):
            return None
        return frames.transpose(0, 3, 1, 2)

    def close(self) -> None:
        super().close()
        self._reader = None


class TorchCodecVideo(_CheckedVideo):
    """torchcodec, an optional library."""

    def _opens(self) -> bool:
        advice = "install torchcodec with FFmpeg's shared libraries, or use the reader 'pyav'"
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError):
            raise InputError(f"the reader 'torchcodec' cannot be imported; {advice}") from None
        try:
            self._decoder = VideoDecoder(str(self.path), num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            # Newer releases load FFmpeg only when the first file is opened.
            if "load libtorchcodec" in str(error):
                raise InputError(f"the reader 'torchcodec' cannot load FFmpeg; {advice}") from None
            return False
        return len(self._decoder) == self.num_frames

    def _fetch(self, indices: list[int]) -> np.ndarray | None:
        try:
            return self._decoder.get_frames_at(indices).data.numpy()
        except (RuntimeError, ValueError):
            return None
