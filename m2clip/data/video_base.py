"""The interface of an open video and the checks that need no decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from m2clip.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# The largest picture that is decoded, twice that of 8K video, and the longest video, 46 hours at 60 frames a second.
MAX_PIXELS = 1 << 26
MAX_FRAMES = 10_000_000


class VideoError(InputError):
    """A video file that cannot be read; the message is one line that names the file and the reason."""


class Video:
    """An open video.

    Attributes:
        path: what was opened.
        num_frames: number of frames.
        fps: mean frame rate in frames a second; NaN where the source has none (a folder of images, one lone frame).
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
        wanted = sorted(set(indices))
        if not wanted:
            raise ValueError("no frame indices given")
        if wanted[0] < 0 or wanted[-1] >= self.num_frames:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise IndexError(f"frame {outside} of {self.path}, which has frames 0 to {self.num_frames - 1}")
        frames = self._read_sorted(wanted)
        if wanted == list(indices):
            return frames
        position = {index: rank for rank, index in enumerate(wanted)}
        return frames[[position[index] for index in indices]]

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


def check_file(path: Path) -> None:
    # A pipe or a device would be waited for, or read without end.
    if path.exists() and not path.is_file():
        raise VideoError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        # The latter is for a name that no file can have.
        reason = getattr(error, "strerror", None) if path.exists() else "no such file"
        raise VideoError(f"{path}: {reason}") from None
    if not head:
        raise VideoError(f"{path}: the file is empty")
    if not any(head):
        raise VideoError(f"{path}: filled with zeros, probably an unfinished download")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise VideoError(f"{path}: a web page saved as a video, probably a failed download")


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


def stack(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames (3, H, W) as (n, 3, H, W), contiguous whatever the order of the given ones' memory."""
    stacked = np.empty((len(frames), *frames[0].shape), np.uint8)
    for place, frame in zip(stacked, frames, strict=True):
        place[...] = frame
    return stacked
