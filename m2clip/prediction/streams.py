"""What happens in a video that is still going on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from m2clip.data.clips import ClipSettings
from m2clip.data.memory import checked_frames
from m2clip.data.transforms import EvalTransform
from m2clip.data.video.live import LiveFrame
from m2clip.errors import InputError
from m2clip.evaluate.scoring import fuse_views
from m2clip.methods.views import default_settings
from m2clip.prediction.scores import head_scores, ranked
from m2clip.prediction.windows import WindowSettings, check_evenly
from m2clip.sizes import sides
from m2clip.terminal import printable

_ROUNDING = 1e-6
_REPEATED = 1.0  # a frame that is so many seconds earlier than the last one is an old one that comes late
_AWAY = 10.0  # seconds without a frame after which a clip begins anew
# Seconds, what gives the frame as (3, H, W), and the frame itself where it tells its age.
_Timed: TypeAlias = tuple[float, Callable[[], np.ndarray], LiveFrame | None]


@dataclass(frozen=True, repr=False)
class StreamPrediction:
    """What happens at a moment of a stream.

    Attributes:
        seconds: the end of the window, after the first frame.
        head: which scores these are: "supervised" (VC head) or "zero-shot" (text similarity).
        ranked: (name, score) of every class, best first, smoothed over time.
        latency: seconds between the coming of the newest frame and this result; None where that is unknown.
        skipped: steps that were left out since the last result, to stay within the latency.
        top: how many classes are shown.
    """

    seconds: float
    head: str
    ranked: list[tuple[str, float]]
    latency: float | None
    skipped: int
    top: int = 5

    @property
    def label(self) -> str:
        """Name of the best class."""
        return self.ranked[0][0]

    @property
    def score(self) -> float:
        """Score of the best class."""
        return self.ranked[0][1]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        best = [{"name": name, "score": score} for name, score in self.ranked[: self.top]]
        latency = None if self.latency is None else round(self.latency, 3)
        return {"seconds": round(self.seconds, 3), "head": self.head, "predictions": best, "latency": latency}

    def __repr__(self) -> str:
        shown = "  ".join(f"{printable(name)} {100 * score:.0f} %" for name, score in self.ranked[: self.top])
        return f"{self.seconds:8.2f} s  {shown}"


class RollingClip:
    """The clip of the last seconds, of frames as they come.

    A window ends at every step; its T frames are those shown in the middle of each T-th part of it. Only these are
    converted and resized, once each, and no more than a window of them is kept.

    Args:
        windows: length of the window, and the step.
        settings: number of frames, and how they are transformed.
    """

    def __init__(self, windows: WindowSettings, settings: ClipSettings) -> None:
        self.windows, self._settings = windows, settings
        self._cut = EvalTransform(settings.of_frames).cut
        # When a window has its frames, after its start.
        self._moments = (np.arange(settings.num_frames) + 0.5) / settings.num_frames * windows.seconds
        self._kept: deque[tuple[float, Tensor]] = deque()
        self._last: tuple[float, Callable[[], np.ndarray]] | None = None
        self._start = self._next = 0.0
        self.restart(0.0)

    def blank(self) -> Tensor:
        """Views of nothing."""
        views = self._cut(torch.zeros(1, 3, *sides(self._settings.size), dtype=torch.uint8))
        return views.expand(-1, self._settings.num_frames, -1, -1, -1)

    def restart(self, seconds: float) -> None:
        """Begin anew: what came before is no part of any window."""
        self._kept.clear()
        self._last, self._start = None, seconds
        self._next = seconds + self.windows.seconds

    def add(self, seconds: float, pixels: Callable[[], np.ndarray]) -> float | None:
        """Take in a frame; returns the end of the window that is now complete, None where none is.

        Args:
            seconds: the frame's time, above that of the last one.
            pixels: gives the frame, (3, H, W) uint8.
        """
        if self._last is not None and self._is_wanted(self._last[0], seconds):
            frame = torch.from_numpy(np.ascontiguousarray(self._last[1]()))
            self._kept.append((self._last[0], self._cut(frame[None])[:, 0]))
        self._last = seconds, pixels
        if seconds < self._next - _ROUNDING:
            return None
        # Of several windows that end at once the last one is meant.
        passed = math.floor((seconds - self._next) / self.windows.step + _ROUNDING)
        end = self._next + passed * self.windows.step
        self._next = end + self.windows.step
        oldest = end - self.windows.seconds + float(self._moments[0])
        while len(self._kept) > 1 and self._kept[1][0] <= oldest + _ROUNDING:
            self._kept.popleft()
        return end

    def views(self, end: float) -> Tensor:
        """(crops, T, 3, height, width) of the window that ends now."""
        times = np.array([seconds for seconds, _ in self._kept])
        wanted = end - self.windows.seconds + self._moments
        places = np.clip(np.searchsorted(times, wanted + _ROUNDING, side="right") - 1, 0, None)
        return torch.stack([self._kept[place][1] for place in places.tolist()], 1)

    def _is_wanted(self, start: float, end: float) -> bool:
        """Whether a frame that is shown from start to end is the frame of a moment of some window."""
        offsets = self._start + self._moments
        steps = np.maximum(np.ceil((start - offsets - _ROUNDING) / self.windows.step), 0)
        return bool((offsets + steps * self.windows.step < end - _ROUNDING).any())


def stream(
    model: Any,
    frames: Iterable[Any],
    labels: Sequence[str] | None = None,
    *,
    window: float = 2.0,
    step: float | None = None,
    smoothing: float = 1.0,
    fps: float | None = None,
    latency: float | None = None,
    top: int = 5,
    precision: str = "fp32",
    **views: Any,
) -> Iterator[StreamPrediction]:
    """What happens now, at every step of frames that come one after the other.

    Args:
        model: a video model.
        frames: frames (H, W, 3), uint8 or floats in 0 ... 1, or pairs of a time in seconds and a frame. Without times
            they come at `fps`, or else when they come.
        labels: the names to choose from; None takes the model's.
        window: seconds that the model sees at once.
        step: seconds from one result to the next; None takes a quarter of the window.
        smoothing: seconds after which an old score counts 1 / e; 0 smooths nothing.
        fps: frames per second of frames without times.
        latency: steps are left out where a result would come later than so many seconds after its newest frame, and
            fresher frames can be had; of frames of `m2clip.data.video.live.LiveVideo` alone, for others it is unknown.
        top: how many classes a result shows.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        views: fields of `m2clip.data.clips.ClipSettings`, as for `m2clip.predict`.

    Raises:
        InputError: impossible settings, frames that are none, or scores that are not finite.
    """
    if not smoothing >= 0:
        raise InputError(f"smoothing must be 0 s or more, not {smoothing}")
    if fps is not None and not fps > 0:
        raise InputError(f"fps must be above 0, not {fps}")
    check_evenly(views)
    settings, device = default_settings(model, **views), next(model.parameters()).device
    clip = RollingClip(WindowSettings.of(window, step), settings)
    scorer = model.with_class_names(labels).eval()

    def score(views: Tensor) -> tuple[str, Tensor, float]:
        """The head, the probabilities (C,), and the seconds that it took."""
        began = time.monotonic()
        head, found = head_scores(scorer, views, settings, device, precision)
        return head, fuse_views(found), time.monotonic() - began

    # The first pass makes what later ones find; nothing has to wait for it, because no source is open yet.
    cost = [score(clip.blank())[2] for _ in range(2)][1]
    return _results(clip, score, cost, _timed(frames, fps), scorer.class_names, smoothing, latency, top)


def _results(
    clip: RollingClip,
    score: Callable[[Tensor], tuple[str, Tensor, float]],
    cost: float,
    frames: Iterator[_Timed],
    names: Sequence[str],
    smoothing: float,
    latency: float | None,
    top: int,
) -> Iterator[StreamPrediction]:
    scores: Tensor | None = None
    last = last_end = -math.inf
    shift, skipped = 0.0, 0
    before: float | None = None  # age at the last step, which was left out
    for given, pixels, live in frames:
        seconds = given + shift
        if last - _REPEATED < seconds <= last:
            continue
        if last == -math.inf:
            clip.restart(seconds)
        elif not last < seconds <= last + max(clip.windows.seconds, _AWAY):
            # A source that began anew, or that was away: its time goes on, its clip does not.
            shift += last + clip.windows.step - seconds
            seconds = given + shift
            clip.restart(seconds)
            scores = None
        last = seconds
        end = clip.add(seconds, pixels)
        if end is None:
            continue
        if live is not None and latency is not None:
            age = live.age()
            # Ages fall while what waits is decoded: fresher frames are had at once.
            if age + cost > latency and (before is None or before - age > clip.windows.step / 2):
                before = age
                skipped += 1
                continue
            before = None
        head, new, took = score(clip.views(end))
        cost += 0.2 * (took - cost)
        if scores is not None and smoothing:
            kept = math.exp((last_end - end) / smoothing)
            new = kept * scores + (1 - kept) * new
        scores, last_end = new, end
        best = ranked(new, names, "the stream")
        yield StreamPrediction(end, head, best, None if live is None else live.age(), skipped, top)
        skipped = 0


def _timed(frames: Iterable[Any], fps: float | None) -> Iterator[_Timed]:
    """The time of each frame, what gives it as (3, H, W), and the frame itself where it tells its age."""
    began = time.monotonic()
    for number, frame in enumerate(frames):
        if isinstance(frame, LiveFrame):
            yield frame.seconds, frame.pixels, frame
            continue
        if isinstance(frame, tuple):
            if len(frame) != 2:
                raise InputError(f"a frame comes alone or with its time in seconds, not as {len(frame)} values")
            seconds, image = float(frame[0]), frame[1]
        else:
            seconds, image = number / fps if fps else time.monotonic() - began, frame
        checked = checked_frames(image[None] if hasattr(image, "shape") else np.asarray(image)[None])
        yield seconds, checked[0].permute(2, 0, 1).numpy, None
