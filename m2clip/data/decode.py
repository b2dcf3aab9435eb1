"""Frames of a video by index, exactly the same ones whatever library decodes them.

Frame i is the i-th frame in presentation order that a player would show: frames before the start of an edit list do not
count, a late start does not shift the count, and a variable frame rate does not matter. Frames are turned upright as
the file's rotation metadata asks. Only the frames asked for are converted and kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2clip.data.video_base import Video, VideoError, check_length, check_size, is_folder, stack
from m2clip.data.video_pyav import PyAVVideo
from m2clip.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "READERS", "PyAVVideo", "Video", "VideoError", "open_video"]

READERS = ("auto", "decord", "pyav", "torchcodec", "frames")
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp"])


def open_video(
    path: str | Path, reader: str = "auto", *, pattern: str | None = None, num_frames: int | None = None
) -> Video:
    """Open a video for reading frames by index; use it in a `with` block.

    Args:
        path: video file, or a folder of images.
        reader: "auto" (a folder: its images; a file: PyAV, which passes over frames that are not wanted and that no
            other refers to), "decord", "pyav", "torchcodec" or "frames". A file that decord or torchcodec would
            miscount or cannot read is read by PyAV.
        pattern, num_frames: for a folder: image names with the frame number from 1 ("img_{:05d}.jpg") and their count;
            default: every image in sorted order.

    Raises:
        VideoError: the file is missing, empty, truncated, no video, without frames, ...: one line.
        InputError: unknown reader, or its library is not installed.
    """
    path = Path(path)
    if reader not in READERS:
        raise InputError(f"unknown video reader {reader!r}; choose from {', '.join(READERS)}")
    folder = is_folder(path)
    if reader == "frames" or (reader == "auto" and folder):
        return FrameFolder(path, pattern, num_frames)
    if folder:
        raise VideoError(f"{path}: a folder, not a video file; folders of images are read by the reader 'frames'")
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
        self.uses_pyav = not self._pyav.plain or not self._opens()

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
            raise InputError(f"the reader 'decord' cannot be imported ({error}); use the reader 'pyav'") from None
        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(str(self.path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError):
            return False
        return len(self._reader) == self.num_frames

    def _fetch(self, indices: list[int]) -> np.ndarray | None:
        import decord

        try:
            frames: np.ndarray = self._reader.get_batch(indices).asnumpy()
        except (decord.DECORDError, RuntimeError):
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


class FrameFolder(Video):
    """A folder with one image per frame, without a frame rate (`fps` is NaN)."""

    def __init__(self, path: Path, pattern: str | None, num_frames: int | None) -> None:
        self.path, self.fps = path, math.nan
        if not path.is_dir():
            raise VideoError(f"{path}: no such folder of frames")
        check_length(path, num_frames or 0)
        if pattern is None:
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            count = len(files) if num_frames is None else num_frames
            if len(files) < count:
                raise VideoError(f"{path}: holds {len(files)} images, {count} were announced")
        else:
            files, count = [], _count_images(path, pattern) if num_frames is None else num_frames
        self._files, self._pattern = files, pattern
        self.num_frames = count
        if not count:
            raise VideoError(f"{path}: holds no images" + (f" named {pattern}" if pattern else ""))

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        frames = [_read_image(self._file(index)) for index in indices]
        if len({frame.shape for frame in frames}) > 1:
            raise VideoError(f"{self.path}: its images differ in size")
        return stack(frames)

    def _file(self, index: int) -> Path:
        return self._files[index] if self._pattern is None else self.path / self._pattern.format(index + 1)


def _count_images(path: Path, pattern: str) -> int:
    count = 0
    while (path / pattern.format(count + 1)).is_file():
        count += 1
    return count


def _read_image(path: Path) -> np.ndarray:
    """(3, H, W) uint8 of an image, turned as its EXIF orientation says."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            check_size(path, *image.size)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise VideoError(f"{path}: no such image") from None
    except VideoError:
        raise
    except Exception as error:
        # What Pillow raises for a damaged file is not limited to its own exceptions.
        raise VideoError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None
    return np.asarray(upright).transpose(2, 0, 1)
