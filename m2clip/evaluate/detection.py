"""Average precision of segments, as ActivityNet's evaluation defines it.

Source: the evaluation of ActivityNet's detection task (Caba Heilbron et al., CVPR 2015), written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Interval(NamedTuple):
    """A segment of a video.

    Attributes:
        video: name of the video.
        label: class name.
        start: in seconds.
        end: in seconds.
        score: of a predicted one.
    """

    video: str
    label: str
    start: float
    end: float
    score: float = 1.0


@dataclass(frozen=True)
class DetectionResult:
    """Average precision over classes and over overlaps.

    Attributes:
        tious: temporal intersections over unions from which a predicted segment counts as right.
        by_class: class name -> average precision at each of `tious`, of the classes that have true segments.
        videos: how many videos were scored.
        true: how many true segments there are.
        predicted: how many were predicted.
    """

    tious: tuple[float, ...]
    by_class: dict[str, list[float]]
    videos: int
    true: int
    predicted: int

    @property
    def by_tiou(self) -> list[float]:
        """Mean over the classes, at each of `tious`."""
        return [float(value) for value in np.mean(list(self.by_class.values()), axis=0)]

    @property
    def mean(self) -> float:
        """Mean over `tious` too."""
        return float(np.mean(self.by_tiou))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "mean_ap": self.mean,
            "ap": {f"{tiou:g}": value for tiou, value in zip(self.tious, self.by_tiou, strict=True)},
            "by_class": self.by_class,
            "videos": self.videos,
            "true_segments": self.true,
            "predicted_segments": self.predicted,
        }


def detection_result(
    true: Sequence[Interval], predicted: Sequence[Interval], videos: Iterable[str], tious: Sequence[float] = TIOUS
) -> DetectionResult:
    """Average precision of the segments of several videos.

    Args:
        true: the segments that there are.
        predicted: those that were found, with scores.
        videos: names of all videos; segments of others are left out.
        tious: overlaps from which a predicted segment counts as right.

    Raises:
        ValueError: no true segment.
    """
    known = set(videos)
    true = [one for one in true if one.video in known]
    predicted = [one for one in predicted if one.video in known]
    if not true:
        raise ValueError("no true segment in these videos")
    found: dict[str, list[Interval]] = {}
    for one in predicted:
        found.setdefault(one.label, []).append(one)
    wanted: dict[str, list[Interval]] = {}
    for one in true:
        wanted.setdefault(one.label, []).append(one)
    by_class = {label: average_precision(wanted[label], found.get(label, []), tious) for label in sorted(wanted)}
    return DetectionResult(tuple(tious), by_class, len(known), len(true), len(predicted))


def average_precision(true: Sequence[Interval], predicted: Sequence[Interval], tious: Sequence[float]) -> list[float]:
    """Average precision of one class at each of some overlaps.

    Predicted segments are gone through by falling score. One is right if it overlaps enough with a true segment of its
    video that no better one has taken; of several it takes the one of most overlap. Precision at a recall is the best
    at this or any higher recall, and its mean over recall is the result.

    Args:
        true: segments of the class, at least one.
        predicted: segments that were found, in any order; of equal scores the first comes first.
        tious: overlaps from which one counts as right.
    """
    of_video: dict[str, list[int]] = {}
    for place, one in enumerate(true):
        of_video.setdefault(one.video, []).append(place)
    order = sorted(predicted, key=lambda one: -one.score)
    results = []
    for tiou in tious:
        taken: set[int] = set()
        right = np.zeros(len(order))
        for number, one in enumerate(order):
            places = of_video.get(one.video, [])
            overlaps = {place: overlap(one, true[place]) for place in places if place not in taken}
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] >= tiou:
                taken.add(best)
                right[number] = 1
        results.append(_interpolated(right, len(true)))
    return results


def overlap(one: Interval, other: Interval) -> float:
    """Temporal intersection over union."""
    common = max(min(one.end, other.end) - max(one.start, other.start), 0.0)
    both = (one.end - one.start) + (other.end - other.start) - common
    return common / both if both > 0 else 0.0


def _interpolated(right: np.ndarray, true: int) -> float:
    """Area below the best precision at each recall or above it."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * right).sum() / true)
