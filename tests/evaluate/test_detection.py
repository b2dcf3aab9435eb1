"""Average precision of segments, worked out by hand."""

from __future__ import annotations

import pytest

from m2clip.evaluate.detection import Interval, average_precision, detection_result, overlap


def at(start: float, end: float, score: float = 1.0, video: str = "v", label: str = "a") -> Interval:
    return Interval(video, label, start, end, score)


def test_overlap() -> None:
    # 5 s of 0-10 and 5-15 are common, 15 s are in one of them.
    assert overlap(at(0, 10), at(5, 15)) == pytest.approx(1 / 3)
    assert overlap(at(0, 10), at(10, 15)) == overlap(at(0, 1), at(5, 6)) == 0
    assert overlap(at(2, 4), at(0, 10)) == pytest.approx(0.2)


def test_average_precision() -> None:
    # By falling score: right (8/10 overlap), wrong, right (exact), wrong, and one true segment is not found.
    # Precision at the two hits is 1/1 and 2/3, the best from there on 1 and 2/3; recall goes 1/3 each time.
    true = [at(0, 10), at(20, 30), at(40, 50)]
    predicted = [at(0, 8, 0.9), at(100, 110, 0.8), at(20, 30, 0.7), at(200, 210, 0.6)]
    assert average_precision(true, predicted, [0.5]) == [pytest.approx((1 + 2 / 3) / 3)]
    # From an overlap of 0.9 the first is wrong: only the third is right, at precision 1/3.
    assert average_precision(true, predicted, [0.9]) == [pytest.approx(1 / 3 / 3)]


def test_precision_is_the_best_at_a_recall_or_above() -> None:
    # Wrong, right, right: precisions 1/2 and 2/3 at the hits, of which 2/3 counts for both.
    predicted = [at(90, 99, 0.9), at(0, 10, 0.8), at(20, 30, 0.7)]
    assert average_precision([at(0, 10), at(20, 30)], predicted, [0.5]) == [pytest.approx(2 / 3)]


def test_a_true_segment_is_found_once() -> None:
    # The second of the same place is wrong, whatever its overlap.
    assert average_precision([at(0, 10), at(20, 30)], [at(0, 9, 0.9), at(0, 10, 0.8)], [0.5]) == [0.5]
    # The better one takes its best match, and leaves the next best to the other.
    true = [at(0, 10), at(2, 12)]
    assert average_precision(true, [at(2, 11, 0.9), at(2, 12, 0.8)], [0.5]) == [1.0]


def test_the_same_place_of_another_video_is_wrong() -> None:
    assert average_precision([at(0, 10)], [at(0, 10, video="w")], [0.5]) == [0.0]
    assert average_precision([at(0, 10)], [], [0.3, 0.5]) == [0.0, 0.0]


def test_classes_are_averaged() -> None:
    true = [at(0, 10), at(0, 10, label="b"), at(5, 6, video="unknown")]
    predicted = [at(0, 10), at(0, 4, label="b"), at(0, 10, label="c"), at(5, 6, video="unknown")]
    found = detection_result(true, predicted, ["v"])
    # Class b overlaps by 0.4, which counts at 0.3 and 0.4; class c has no true segment and does not count.
    assert found.by_class == {"a": [1.0] * 5, "b": [1.0, 1.0, 0.0, 0.0, 0.0]}
    assert found.by_tiou == [1.0, 1.0, 0.5, 0.5, 0.5] and found.mean == pytest.approx(0.7)
    assert (found.true, found.predicted, found.videos) == (2, 3, 1)
    assert found.to_dict()["ap"] == {"0.3": 1.0, "0.4": 1.0, "0.5": 0.5, "0.6": 0.5, "0.7": 0.5}
    with pytest.raises(ValueError, match="no true segment"):
        detection_result(true, predicted, ["w"])
