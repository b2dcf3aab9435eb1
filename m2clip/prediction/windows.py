"""Windows of seconds that are moved over a video: each frame is decoded once, and few are in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2clip.data.clips import ClipSettings, batches_of_frames
from m2clip.data.memory import VideoSource, frame_times, open_source, shown_at, shown_until
from m2clip.data.transforms import EvalTransform
from m2clip.data.video.base import Video
from m2clip.errors import InputError
from m2clip.evaluate.scoring import scoring_mode
from m2clip.prediction.scores import BATCH_SIZE, check_finite, head_scores, pixels
from m2clip.prediction.segments import SegmentRule, cells_of, find_segments
from m2clip.prediction.timeline import Timeline

THUMBNAILS = 12
MOST_WINDOWS = 1_000_000


@dataclass(frozen=True)
class WindowSettings:
    """How windows lie in a video.

    Args:
        seconds: length of a window. A clip of T frames has one from the middle of each T-th part, whatever the frame
            rate and the sampling of the model's own views.
        step: from the start of a window to that of the next, at most its length.

    Raises:
        InputError: a length or step that is not above 0, or a step that leaves gaps.
    """

    seconds: float
    step: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise InputError(f"a window must last more than 0 s, not {self.seconds:g}")
        if not 0 < self.step <= self.seconds:
            raise InputError(
                f"the step must be above 0 s and at most the window's {self.seconds:g} s, not {self.step:g}"
            )

    @classmethod
    def of(cls, seconds: float, step: float | None = None) -> WindowSettings:
        """Windows of a length, by default a quarter of it apart; InputError as for the class."""
        for value in (seconds, step):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"windows and steps are numbers of seconds, not {value!r}")
        return cls(seconds, seconds / 4 if step is None else step)

    def bounds(self, duration: float) -> np.ndarray:
        """(W, 2) start and end of the windows of a video: all that fit, and one that ends with the video.

        A video that is shorter than a window is one window.

        Raises:
            InputError: far too many windows, as of a video in which a time is wrong.
        """
        spare = duration - self.seconds
        if spare / self.step > MOST_WINDOWS:
            raise InputError(
                f"a video of {duration:g} s has too many windows at a step of {self.step:g} s: take a larger"
            )
        if spare <= 0:
            return np.array([[0.0, duration]])
        starts = np.arange(math.floor(spare / self.step + 1e-6) + 1) * self.step
        if spare - starts[-1] > 1e-6 * self.step:
            starts = np.append(starts, spare)
        return np.stack([starts, starts + self.seconds], 1)


def check_evenly(views: Iterable[str]) -> None:
    """InputError where fields of `ClipSettings` are given that say nothing of windows."""
    wrong = next((name for name in ("clips", "sampling", "stride") if name in views), None)
    if wrong is not None:
        raise InputError(f"{wrong!r} says nothing of windows, whose frames are evenly spread: drop it")


def score_windows(
    model: Any,
    video: VideoSource,
    windows: WindowSettings,
    rule: SegmentRule,
    settings: ClipSettings,
    *,
    class_names: Sequence[str] | None = None,
    fps: float | None = None,
    precision: str = "fp32",
    progress: Callable[[float, float], None] | None = None,
) -> Timeline:
    """What happens when in a video.

    Args:
        model: a video model, on its device.
        video: as `m2clip.prediction.videos.predict` takes it.
        windows: how windows lie in it.
        rule: when windows make a segment.
        settings: how frames are read and transformed; the crops of a window are averaged.
        class_names: the names to choose from; None takes the model's.
        fps: frames per second of frames that are given without times.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        progress: called with (seconds done, seconds of the video).

    Raises:
        InputError: a video that cannot be read or has no times, or scores that are not finite.
    """
    device = next(model.parameters()).device
    with open_source(video, settings, fps) as (opened, name), scoring_mode(model, class_names) as scorer:
        times = frame_times(opened)
        if times is None or not times[-1] > 0:
            raise InputError(f"{name}: its frames have no times, which windows of seconds need; of an array give fps")
        duration = shown_until(opened, times)
        bounds = windows.bounds(duration)
        moments = (np.arange(settings.num_frames) + 0.5) / settings.num_frames
        indices = shown_at(times, bounds[:, :1] + (bounds[:, 1:] - bounds[:, :1]) * moments)
        scores = np.empty((len(bounds), len(scorer.class_names)), np.float32)
        shown = _evenly(indices, bounds, duration)
        thumbnails: dict[int, Tensor] = {}
        head = ""
        for numbers, views in _grouped(_window_views(opened, indices, settings), BATCH_SIZE):
            head, found = head_scores(scorer, views.flatten(0, 1), settings, device, precision)
            check_finite(found, name)
            scores[numbers] = found.double().softmax(1).unflatten(0, views.shape[:2]).mean(1).numpy()
            for number, view in zip(numbers, views, strict=True):
                if number in shown:
                    thumbnails[number] = pixels(view[len(view) // 2, settings.num_frames // 2], settings)
            if progress is not None:
                progress(float(bounds[numbers[-1], 1]), duration)
    return Timeline(
        path=name,
        head=head,
        class_names=list(scorer.class_names),
        duration=duration,
        windows=bounds,
        scores=scores,
        segments=find_segments(scores, cells_of(bounds, duration), rule),
        frames=torch.stack([thumbnails[number] for number in sorted(thumbnails)]),
        frame_seconds=[float(bounds[number].mean()) for number in sorted(thumbnails)],
    )


def _evenly(indices: np.ndarray, bounds: np.ndarray, duration: float) -> set[int]:
    """Windows whose middles are about evenly spread over the video."""
    wanted = (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * duration
    return {int(np.abs(bounds.mean(1) - moment).argmin()) for moment in wanted}


def _window_views(video: Video, indices: np.ndarray, settings: ClipSettings) -> Iterator[tuple[int, Tensor]]:
    """Windows by number, when their last frame is decoded, and their views (crops, T, 3, height, width).

    Resized frames wait in memory until the last window that has them. A window comes again where a decoder gives its
    frames again because the first ones were wrong.
    """
    cut = EvalTransform(settings.of_frames).cut
    first, last = indices[:, 0], indices[:, -1]
    waiting: dict[int, Tensor] = {}
    for some, frames in batches_of_frames(video.each(np.unique(indices).tolist())):
        for index, crops in zip(some, cut(frames).unbind(1), strict=True):
            waiting[index] = crops
            ended, next_one = np.searchsorted(last, index, "left"), np.searchsorted(last, index, "right")
            for number in range(ended, next_one):
                if all(one in waiting for one in indices[number].tolist()):
                    yield number, torch.stack([waiting[one] for one in indices[number].tolist()], 1)
            needed = first[next_one] if next_one < len(first) else index + 1
            for one in [one for one in waiting if one < needed]:
                del waiting[one]


def _grouped(windows: Iterator[tuple[int, Tensor]], size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Windows whose views share forward passes: their numbers and (n, crops, T, 3, height, width)."""
    group: dict[int, Tensor] = {}
    for number, views in windows:
        group[number] = views
        if len(group) * len(views) >= size:
            yield list(group), torch.stack(list(group.values()))
            group = {}
    if group:
        yield list(group), torch.stack(list(group.values()))
