"""The benchmark of long videos counts right, and cuts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import long_video


def test_segments_and_borders_are_counted() -> None:
    # True: a 0-10, b 10-20, a 20-30. The first is found to 0.5 and 1.5 s; of the second too little; the third exactly.
    found = [
        {"name": "a", "start": 0.5, "end": 8.5},
        {"name": "b", "start": 12, "end": 16},
        {"name": "a", "start": 20, "end": 30},
        {"name": "b", "start": 20, "end": 30},
    ]
    counted = long_video.accuracy(["a", "b", "a"], found)
    assert (counted["segments"], counted["found"], counted["right"]) == (3, 4, 2)
    assert counted["borders_within_1s"] == pytest.approx(3 / 6)
    assert counted["border_distance_s"]["min"] == 0


def test_a_video_is_cut_into_its_parts(tmp_path: Path) -> None:
    from m2clip.data.video.readers import open_video

    names = long_video.long_video(tmp_path / "long.mp4", 2, seed=0)
    assert len(names) == 2 and names[0] != names[1]
    parts = long_video.cut(tmp_path / "long.mp4", tmp_path / "parts", 2.0, 0.5)
    assert len(parts) == (20 - 2) / 0.5 + 1
    with open_video(parts[3]) as part, open_video(tmp_path / "long.mp4") as whole:
        assert part.num_frames == 24
        # Frames that were encoded again differ by a little, neighbouring ones by more.
        same, other = (whole.read([3 * 6 + shift]).float() for shift in (5, 12))
        assert (part.read([5]).float() - same).abs().mean() < 4 < (part.read([5]).float() - other).abs().mean()
