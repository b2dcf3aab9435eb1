"""From the scores of neighbouring windows to segments: when what happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m2clip.errors import InputError


class Segment(NamedTuple):
    """A part of a video in which one class goes on.

    Attributes:
        start: in seconds.
        end: in seconds.
        label: number of the class.
        score: mean score of the class over the windows of the segment.
    """

    start: float
    end: float
    label: int
    score: float


@dataclass(frozen=True)
class SegmentRule:
    """When windows make a segment.

    Args:
        high: a segment has a window of at least this score.
        low: all its windows have at least this score.
        min_length: of a segment, in seconds; also the gap that is closed between two segments of one class.

    Raises:
        InputError: not 0 < low <= high <= 1, or a length below 0.
    """

    high: float
    low: float
    min_length: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise InputError(f"thresholds must be 0 < low <= high <= 1, not low {self.low:g} and high {self.high:g}")
        if not 0 <= self.min_length < float("inf"):
            raise InputError(f"the length of a segment must be 0 s or more, not {self.min_length:g}")

    @classmethod
    def for_window(
        cls, seconds: float, high: float = 0.5, low: float | None = None, min_length: float | None = None
    ) -> SegmentRule:
        """The rule for windows of a length: by default half of `high` keeps a segment going, half a window is least."""
        return cls(high, high / 2 if low is None else low, seconds / 2 if min_length is None else min_length)


def cells_of(windows: np.ndarray, duration: float) -> np.ndarray:
    """(W, 2) what each window stands for: halfway to the middles of its neighbours, and to the video's ends.

    Args:
        windows: (W, 2) start and end of each, in the order of time.
        duration: of the video.
    """
    middles = windows.mean(1)
    edges = np.concatenate([[0.0], (middles[1:] + middles[:-1]) / 2, [duration]])
    return np.stack([edges[:-1], edges[1:]], 1)


class _Run(NamedTuple):
    first: int
    last: int
    label: int


def find_segments(scores: np.ndarray, cells: np.ndarray, rule: SegmentRule) -> list[Segment]:
    """Segments in the order of time; no two overlap.

    A window belongs to its best class, if that has at least the low threshold. Then:

    1. Neighbouring windows of one class are a run. Runs without a window of at least the high threshold are dropped.
    2. Two runs of one class that follow each other become one, if the gap between them is below the minimum length.
    3. The shortest run, the first of equals, is dropped if it is below the minimum length, and 2 is done again, until
       no run is too short.

    Args:
        scores: (W, C) of the windows, in the order of time.
        cells: (W, 2) start and end of what each window stands for, in seconds; they do not overlap.
        rule: the thresholds and the minimum length.
    """
    best = scores.argmax(1)
    top = scores.max(1)
    label = np.where(top >= rule.low, best, -1)
    starts = np.flatnonzero(np.diff(label, prepend=-2))
    runs = [
        _Run(int(first), int(last) - 1, int(label[first]))
        for first, last in zip(starts, [*starts[1:], len(label)], strict=True)
        if label[first] >= 0 and top[first:last].max() >= rule.high
    ]

    def length(run: _Run) -> float:
        return float(cells[run.last, 1] - cells[run.first, 0])

    # Sums of decimal fractions miss their length by a rounding.
    least = rule.min_length - 1e-6
    runs = _joined(runs, cells, least)
    while runs and length(shortest := min(runs, key=lambda run: round(length(run), 6))) < least:
        runs.remove(shortest)
        runs = _joined(runs, cells, least)
    return [
        Segment(float(cells[first, 0]), float(cells[last, 1]), number, float(scores[first : last + 1, number].mean()))
        for first, last, number in runs
    ]


def _joined(runs: list[_Run], cells: np.ndarray, least: float) -> list[_Run]:
    """Runs of one class that follow each other as one, where the gap is short."""
    joined: list[_Run] = []
    for run in runs:
        before = joined[-1] if joined else None
        if before is not None and before.label == run.label and cells[run.first, 0] - cells[before.last, 1] < least:
            joined[-1] = _Run(before.first, run.last, run.label)
        else:
            joined.append(run)
    return joined
