"""Videos in memory: read from a file, or given as frames, as bytes or as an open file."""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from m2clip.data.clips import ClipSettings, open_item, views_of
from m2clip.data.lists.annotations import VideoItem
from m2clip.data.video.base import Video, VideoError, check_size
from m2clip.data.video.readers import open_video
from m2clip.errors import InputError
from m2clip.sizes import size_text


class LoadedVideo(NamedTuple):
    """The frames of a video and their times.

    Attributes:
        frames: (T, H, W, 3) uint8, red, green and blue.
        seconds: (T,) float64, when each frame is shown, after the first frame of the file; NaN where it has no times.
    """

    frames: Tensor
    seconds: Tensor


# What a video may be given as: a path, the bytes or an open file of one, or its frames (T, H, W, 3).
VideoSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Tensor | np.ndarray


class FrameArray(Video):
    """Frames in memory as a video.

    Args:
        frames: (T, H, W, 3), as `checked_frames` takes them.
        seconds: (T,) when they are shown, ascending; None without times.

    Raises:
        InputError: frames that are none, or times that do not fit.
    """

    def __init__(self, frames: Any, seconds: Sequence[float] | Tensor | np.ndarray | None = None) -> None:
        self.path, self._frames = Path("frames"), checked_frames(frames)
        self.num_frames, self.fps = len(self._frames), math.nan
        times = None if seconds is None else np.asarray(seconds, np.float64)
        if times is not None and np.isfinite(times).all():
            if times.shape != (self.num_frames,) or (np.diff(times) < 0).any():
                raise InputError(f"{self.num_frames} frames need as many times in seconds, in ascending order")
            if times[-1] > times[0]:
                self.fps = float((self.num_frames - 1) / (times[-1] - times[0]))
            self._times: np.ndarray | None = times - times[0]
        else:
            self._times = None

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        return self._frames[indices].permute(0, 3, 1, 2).numpy()

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        """Presentation times, as `Video.seconds`."""
        return None if self._times is None else [float(self._times[index]) for index in indices]


class FrameTransform:
    """Frames of a video as clips that a model takes.

    Args:
        settings: how clips are cut and transformed.
    """

    def __init__(self, settings: ClipSettings) -> None:
        self.settings = settings

    def __call__(self, frames: Any) -> Tensor:
        """(N, H, W, 3) frames of one video, uint8 or floats in 0 ... 1 -> (views, T, 3, height, width), normalised."""
        return views_of(FrameArray(frames), self.settings)

    def __repr__(self) -> str:
        settings = self.settings
        return (
            f"FrameTransform((N, H, W, 3) frames -> {settings.num_frames} by {settings.sampling} sampling, "
            f"{size_text(settings.size)} pixels, {settings.interpolation}, normalised)"
        )


def load_video(
    video: VideoSource, *, start: float = 0.0, end: float | None = None, fps: float | None = None, reader: str = "auto"
) -> LoadedVideo:
    """Frames of a video file and their times.

    Args:
        video: a path, or the bytes or the open binary file of a video. Addresses are not opened.
        start: the first second to read.
        end: where to stop, in seconds; None reads to the end.
        fps: the frames that are shown at so many equally spaced times a second; None takes every frame once.
        reader: a reader of `m2clip.data.video.readers`.

    Raises:
        InputError: a video that cannot be read, or times outside it.
    """
    if fps is not None and not fps > 0:
        raise InputError(f"fps must be above 0, not {fps}")
    with _named(video) as (path, name), _renamed(path, name), open_video(path, reader) as opened:
        times = frame_times(opened)
        if times is None and (start or end is not None or fps is not None):
            raise InputError(f"{name}: its frames have no times: start, end and fps cannot be meant")
        indices = np.arange(opened.num_frames)
        if times is not None:
            stop = math.inf if end is None else end
            if fps is not None:
                last = min(stop, shown_until(opened, times))
                wanted = start + np.arange(max(math.ceil((last - start) * fps - 1e-6), 0)) / fps
                indices = shown_at(times, wanted)
                seconds = wanted
            else:
                indices = np.flatnonzero((times >= start - 1e-6) & (times < stop))
                seconds = times[indices]
            if not len(indices) or start > times[-1]:
                until = "its end" if end is None else f"{end:g} s"
                raise InputError(f"{name}: no frame from {start:g} s to {until}; it lasts {times[-1]:.2f} s")
        else:
            seconds = np.full(len(indices), np.nan)
        frames = opened.read(indices.tolist()).permute(0, 2, 3, 1)
    return LoadedVideo(frames.contiguous(), torch.from_numpy(seconds.astype(np.float64)))


@contextmanager
def open_source(video: VideoSource, settings: ClipSettings, fps: float | None = None) -> Iterator[tuple[Video, str]]:
    """A video that is given in any way, open, and what messages call it.

    Args:
        video: a path, the bytes or the open binary file of a video, its frames (T, H, W, 3), or a `LoadedVideo`.
        settings: the reader of files.
        fps: frames per second of frames that are given without times.

    Raises:
        InputError: a video that cannot be read, or something else.
    """
    if fps is not None and not fps > 0:
        raise InputError(f"fps must be above 0, not {fps}")
    if isinstance(video, LoadedVideo):
        yield FrameArray(*video), "frames"
    elif isinstance(video, (Tensor, np.ndarray)):
        yield FrameArray(video, None if fps is None else np.arange(len(video)) / fps), "frames"
    else:
        with _named(video) as (path, name), _renamed(path, name), open_item(VideoItem(path, 0), settings) as opened:
            yield opened, name


def frame_times(video: Video) -> np.ndarray | None:
    """(n,) seconds at which all frames of a video are shown, None where it has no times."""
    seconds = video.seconds(range(video.num_frames))
    return None if seconds is None else np.asarray(seconds, np.float64)


def shown_until(video: Video, times: np.ndarray) -> float:
    """When the last frame of a video ends, in seconds: it is shown as long as the others are on the mean."""
    return float(times[-1]) + (0.0 if math.isnan(video.fps) else 1 / video.fps)


def shown_at(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The frame that is shown at each of some moments: the last one whose time has come.

    Args:
        times: (n,) when the frames begin to be shown, ascending.
        wanted: (m,) moments, in the same unit.

    Returns:
        (m,) frame indices.
    """
    # A moment is rounded otherwise than the time of a frame that it is meant to be.
    return np.clip(np.searchsorted(times, wanted + 1e-6, side="right") - 1, 0, len(times) - 1)


def checked_frames(frames: Any) -> Tensor:
    """(T, H, W, 3) uint8 of frames that a user gives.

    Args:
        frames: a tensor or array (T, H, W, 3), uint8 or floats in 0 ... 1.

    Raises:
        InputError: another shape or type, no frames, or floats outside 0 ... 1.
    """
    given = frames.detach().cpu() if isinstance(frames, Tensor) else np.asarray(frames)
    shape = tuple(given.shape)
    if len(shape) != 4 or shape[-1] != 3:
        advice = ""
        if len(shape) == 4 and shape[1] == 3:
            advice = ": use permute(0, 2, 3, 1)"
        elif len(shape) == 5:
            advice = ": several videos are given as a list"
        elif len(shape) == 3 and shape[-1] == 3:
            advice = ": that is one frame, and a video's are stacked, as by np.stack(frames)"
        raise InputError(f"frames must be (T, H, W, 3), not {shape}{advice}")
    if not all(shape):
        raise InputError(f"frames of shape {shape} are empty: give at least one frame")
    check_size(Path("frames"), shape[2], shape[1])
    if not isinstance(given, Tensor):
        if given.dtype.kind not in "uif":
            raise InputError(f"frames must be uint8, or floats in 0 ... 1, not {given.dtype}")
        if any(stride < 0 for stride in given.strides) or not given.flags.writeable or given.dtype.byteorder == ">":
            given = given.astype(given.dtype.newbyteorder("="), copy=True)  # which torch cannot take as they are
        given = torch.from_numpy(given)
    if given.dtype == torch.uint8:
        return given
    if not given.is_floating_point():
        raise InputError(f"frames must be uint8, or floats in 0 ... 1, not {str(given.dtype).removeprefix('torch.')}")
    low, high = float(given.min()), float(given.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"frames of floats must be in 0 ... 1, not {low:g} ... {high:g}: give uint8, or divide by 255")
    return (given.float() * 255).round().to(torch.uint8)


@contextmanager
def _named(video: Any) -> Iterator[tuple[Path, str]]:
    """The file of a video that is given as a path, as bytes or as an open file, and what messages call it."""
    if isinstance(video, (str, os.PathLike)):
        yield Path(video), str(video)
        return
    if isinstance(video, (bytes, bytearray, memoryview)):
        source: Any = io.BytesIO(video)
        name = "bytes"
    elif hasattr(video, "read"):
        source, name = video, str(getattr(video, "name", "file"))
    else:
        raise InputError(f"a video is a path, bytes, a binary file or frames (T, H, W, 3), not {type(video).__name__}")
    with tempfile.NamedTemporaryFile(prefix="m2clip_") as file:
        try:
            shutil.copyfileobj(source, file)
        except TypeError:
            raise InputError(f"{name}: the file is open as text: open it as open(path, 'rb')") from None
        file.flush()
        yield Path(file.name), name


@contextmanager
def _renamed(path: Path, name: str) -> Iterator[None]:
    """Messages name what the user gave, not the file in which it is read."""
    try:
        yield
    except VideoError as error:
        raise VideoError(str(error).replace(str(path), name)) from None
