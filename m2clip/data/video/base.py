"""The interface of an open video and the checks that need no decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from m2clip.errors import InputError
from m2clip.files.disk import open_regular

if TYPE_CHECKING:
    from torch import Tensor

# The largest picture that is decoded, twice that of 8K video, and the longest video, 46 hours at 60 frames per second.
MAX_PIXELS = 1 << 26
MAX_FRAMES = 10_000_000
# Frames that are decoded, and transformed, at once.
TOGETHER = 8


class VideoError(InputError):
    """A video file that cannot be read; the message is one line that names the file and the reason."""


class Video:
    """An open video.

    Attributes:
        path: what was opened.
        num_frames: number of frames.
        fps: mean frame rate in frames per second; NaN where the source has none (a folder of images, one lone frame).
        declared: how many frames the file's header says it has, None where it says nothing.
    """

    path: Path
    num_frames: int
    fps: float
    declared: int | None = None

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices`, in that order and with repeats, as (n, 3, H, W) uint8.

        Raises:
            VideoError: a frame is damaged.
            IndexError: an index is outside 0 ... num_frames - 1.
        """
        # Here, so that a process which only decodes does without torch: it starts in a tenth of the time.
        import torch

        return torch.from_numpy(self.read_array(indices))

    def read_array(self, indices: Sequence[int]) -> np.ndarray:
        """As `read`, as an array."""
        wanted = self._sorted(indices)
        frames = self._read_sorted(wanted)
        if wanted == list(indices):
            return frames
        position = {index: rank for rank, index in enumerate(wanted)}
        return frames[[position[index] for index in indices]]

    def each(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The frames `indices` in ascending order as they are decoded, so that not all of them are held at once.

        A frame may come a second time, where what came before proved wrong: the last one counts.

        Args:
            indices: in any order; repeats are given once.

        Yields:
            A frame's index, and the frame (3, H, W) uint8.

        Raises:
            VideoError: a frame is damaged.
            IndexError: an index is outside 0 ... num_frames - 1.
        """
        return self._each_sorted(self._sorted(indices))

    def _sorted(self, indices: Sequence[int]) -> list[int]:
        wanted = sorted(set(indices))
        if not wanted:
            raise ValueError("no frame indices given")
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise IndexError(f"frame {outside} of {self.path}, which has frames 0 to {self.num_frames - 1}")
        return wanted

    def _each_sorted(self, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(indices), TOGETHER):
            some = indices[start : start + TOGETHER]
            yield from zip(some, self._read_sorted(some), strict=True)

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        raise NotImplementedError

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        """When the frames `indices` are shown, in seconds after frame 0; None where the source has no times."""
        return None if math.isnan(self.fps) else [index / self.fps for index in indices]

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_file(path: Path) -> bytes:
    """The first bytes of a file that may be a video; VideoError where there is none, or it surely is none."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except FileNotFoundError:
        raise VideoError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        # The latter is for a name that no file can have.
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or 'no such file'}") from None
    if not head:
        raise VideoError(f"{path}: the file is empty")
    if not any(head):
        raise VideoError(f"{path}: filled with zeros, probably an unfinished download")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise VideoError(f"{path}: a web page saved as a video, probably a failed download")
    return head


def is_folder(path: Path) -> bool:
    """Whether a path is that of a folder; VideoError where its name is too long for any."""
    try:
        return path.is_dir()
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from None


def check_size(path: Path, width: int, height: int) -> None:
    """VideoError where a picture is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path}: pictures of {width} x {height} pixels; more than {MAX_PIXELS} are not decoded")


def check_length(path: Path, frames: int) -> None:
    """VideoError where a video has too many frames."""
    if frames > MAX_FRAMES:
        raise VideoError(f"{path}: {frames} frames; videos of more than {MAX_FRAMES} are not read: cut it into parts")


def collect(path: Path, indices: Sequence[int], frames: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """The frames `indices` that `Video.each` gives, as (n, 3, H, W), contiguous.

    Raises:
        VideoError: they change their size.
    """
    position = {index: rank for rank, index in enumerate(indices)}
    shapes: dict[int, tuple[int, ...]] = {}
    found = np.empty((0,), np.uint8)
    for index, frame in frames:
        if found.shape[1:] != frame.shape:
            found = np.empty((len(indices), *frame.shape), np.uint8)
        found[position[index]] = frame
        shapes[index] = frame.shape
    if len(set(shapes.values())) > 1:
        raise VideoError(f"{path}: the frame size changes within the video")
    return found


def stack(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames (3, H, W) as (n, 3, H, W), contiguous whatever the order of the given ones' memory."""
    stacked = np.empty((len(frames), *frames[0].shape), np.uint8)
    for place, frame in zip(stacked, frames, strict=True):
        place[...] = frame
    return stacked
