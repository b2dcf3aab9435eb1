"""From scores to segments, worked out by hand. Windows stand for a second each unless said otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from m2clip.errors import InputError
from m2clip.prediction.segments import SegmentRule, cells_of, find_segments
from m2clip.prediction.windows import WindowSettings

RULE = SegmentRule(high=0.5, low=0.3, min_length=2.0)


def found(*columns: list[float], rule: SegmentRule = RULE, cells: np.ndarray | None = None) -> list[tuple]:
    """(start, end, label, score) of classes' scores over time."""
    scores = np.array(columns).T
    cells = np.stack([np.arange(len(scores)), np.arange(len(scores)) + 1.0], 1) if cells is None else cells
    return [(one.start, one.end, one.label, round(one.score, 6)) for one in find_segments(scores, cells, rule)]


def test_the_low_threshold_keeps_a_segment_going() -> None:
    # 0.2 is below both thresholds; 0.4 and 0.3 keep going what 0.6 and 0.8 began: (0.4 + 0.6 + 0.8 + 0.3) / 4.
    assert found([0.2, 0.4, 0.6, 0.8, 0.3, 0.1]) == [(1.0, 5.0, 0, 0.525)]


def test_without_the_high_threshold_there_is_no_segment() -> None:
    assert found([0.2, 0.4, 0.49, 0.4, 0.1]) == []


def test_a_window_belongs_to_its_best_class() -> None:
    # Class 0 has 0.4 in the third window, enough to go on, but class 1 has more.
    assert found([0.9, 0.7, 0.4, 0.1], [0.1, 0.3, 0.6, 0.9]) == [(0.0, 2.0, 0, 0.8), (2.0, 4.0, 1, 0.75)]


def test_of_equal_scores_the_first_class_counts() -> None:
    assert found([0.5, 0.5], [0.5, 0.5]) == [(0.0, 2.0, 0, 0.5)]


def test_short_segments_are_dropped() -> None:
    assert found([0.9, 0.1, 0.1, 0.9, 0.9]) == [(3.0, 5.0, 0, 0.9)]


def test_a_short_gap_is_closed_and_counts_in_the_score() -> None:
    # The gap of one second is below two; that of two seconds is not. (0.9 * 3 + 0.1) / 4.
    assert found([0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.9]) == [(0.0, 4.0, 0, 0.7), (6.0, 8.0, 0, 0.9)]


def test_a_short_interruption_by_another_class_is_closed() -> None:
    # Runs 2 s, 1 s, 2 s: the middle one goes, and what is left is one: (0.8 * 4 + 0.1) / 5.
    assert found([0.8, 0.8, 0.1, 0.8, 0.8], [0.1, 0.1, 0.9, 0.1, 0.1]) == [(0.0, 5.0, 0, 0.66)]


def test_the_shortest_goes_first() -> None:
    # 1.5 s, 0.5 s, 1.5 s, all too short: without the middle one the others are one of 3.5 s.
    cells = np.array([[0, 1.5], [1.5, 2.0], [2.0, 3.5]])
    rule = SegmentRule(0.5, 0.3, 2.0)
    assert found([0.9, 0.1, 0.9], [0.1, 0.8, 0.1], rule=rule, cells=cells) == [(0.0, 3.5, 0, 0.633333)]


def test_of_equally_short_ones_the_first_goes() -> None:
    # Class 0, 1, 0, 1 for a second each: without the first, class 1 goes; then class 0; class 1 is too short alone.
    assert found([0.9, 0.1, 0.9, 0.1], [0.1, 0.9, 0.1, 0.9]) == []
    # Class 1, 0, 1 for a second each and class 0 for two seconds: the three go one by one from the left.
    assert found([0.1, 0.9, 0.1, 0.9, 0.9], [0.9, 0.1, 0.9, 0.1, 0.1]) == [(3.0, 5.0, 0, 0.9)]


def test_lengths_of_decimal_steps_are_not_missed_by_rounding() -> None:
    edges = np.arange(4) * 0.1
    cells = np.stack([edges[:-1], edges[1:]], 1)
    assert len(found([0.9, 0.9, 0.9], rule=SegmentRule(0.5, 0.3, 0.3), cells=cells)) == 1


@pytest.mark.parametrize(("high", "low", "length"), [(0.5, 0.6, 1), (0.5, 0.0, 1), (1.1, 0.5, 1), (0.5, 0.3, -1)])
def test_impossible_rules_are_refused(high: float, low: float, length: float) -> None:
    with pytest.raises(InputError):
        SegmentRule(high, low, length)


def test_windows_cover_a_video() -> None:
    # 10.5 s: four windows of 4 s that fit at steps of 2 s, and one that ends with the video.
    windows = WindowSettings(4.0, 2.0)
    assert windows.bounds(10.5)[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 6.5]
    # Middles at 2, 4, 6, 8 and 8.5 s.
    assert cells_of(windows.bounds(10.5), 10.5).tolist() == [
        [0.0, 3.0],
        [3.0, 5.0],
        [5.0, 7.0],
        [7.0, 8.25],
        [8.25, 10.5],
    ]
    assert windows.bounds(10.0)[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert windows.bounds(3.0).tolist() == cells_of(windows.bounds(3.0), 3.0).tolist() == [[0.0, 3.0]]
    assert len(WindowSettings(0.3, 0.1).bounds(3.0)) == 28


def test_far_too_many_windows_are_refused() -> None:
    with pytest.raises(InputError, match="too many windows at a step of 0.25 s"):
        WindowSettings(1.0, 0.25).bounds(1e12)


@pytest.mark.parametrize(("seconds", "step"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0), (1, 2)])
def test_impossible_windows_are_refused(seconds: float, step: float) -> None:
    with pytest.raises(InputError):
        WindowSettings(seconds, step)
