"""The interface of an open video and the checks that need no decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from m2clip.errors import InputError


class VideoError(InputError):
    """A video file that cannot be read; the message is one line that names the file and the reason."""


class Video:
    """An open video.

    Attributes:
        path: what was opened.
        num_frames: number of frames.
        fps: mean frame rate in frames a second; NaN where the source has none (a folder of images, one lone frame).
    """

    path: Path
    num_frames: int
    fps: float

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices`, in that order and with repeats, as (n, 3, H, W) uint8.

        Raises:
            VideoError: a frame is damaged.
            IndexError: an index is outside 0 ... num_frames - 1.
        """
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

    def _read_sorted(self, indices: list[int]) -> Tensor:
        raise NotImplementedError

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise VideoError(f"{path}: {'no such file' if not path.exists() else error.strerror}") from None
    if not head:
        raise VideoError(f"{path}: the file is empty")
    if not any(head):
        raise VideoError(f"{path}: filled with zeros, probably an unfinished download")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise VideoError(f"{path}: a web page saved as a video, probably a failed download")
