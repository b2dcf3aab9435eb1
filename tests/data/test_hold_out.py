"""What is held out of training: how many of each class, and nothing of one file on both sides."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from m2clip.data.hold_out import hold_out, shares, tell_in_both
from m2clip.data.lists.rows import VideoItem
from m2clip.data.segment import Segment
from m2clip.errors import Notice


def videos(*labels: int) -> list[VideoItem]:
    return [VideoItem(Path(f"/v/{number}.mp4"), label) for number, label in enumerate(labels)]


def drawn(counts: dict[int, int], share: float = 0.2) -> dict[int, int]:
    found = shares(Counter(counts), share, random.Random(0))
    return {label: number for label, number in found.items() if number}


@pytest.mark.parametrize(
    ("counts", "held"),
    [
        ({0: 10, 1: 10, 2: 10, 3: 10}, {0: 2, 1: 2, 2: 2, 3: 2}),
        ({0: 100, 1: 5}, {0: 20, 1: 1}),
        ({0: 1, 1: 1}, {}),
        ({0: 1, 1: 2}, {1: 1}),
        ({0: 1, 1: 9}, {1: 2}),
        ({0: 100_000}, {0: 20_000}),
    ],
)
def test_how_many_of_each_class(counts: dict[int, int], held: dict[int, int]) -> None:
    assert drawn(counts) == held


def test_the_largest_remainders_make_up_the_share() -> None:
    # A fifth of 37 is 7.4, of 10 and 9 it is 2 and 1.8.
    found = drawn({0: 10, 1: 9, 2: 9, 3: 9})
    assert sum(found.values()) == 7 and found[0] == 2 and sorted(found.values()) == [1, 2, 2, 2]
    # Two of eight videos in four classes: of two classes one each.
    assert sorted(drawn({0: 2, 1: 2, 2: 2, 3: 2}).values()) == [1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_a_video(seed: int) -> None:
    labels = [0] * 7 + [1] * 2 + [2] + [3] * 40
    items = videos(*labels)
    train, held = hold_out(items, seed=seed)
    assert sorted(train + held) == list(range(50)) and train == sorted(train) and held == sorted(held)
    assert {items[place].label for place in train} == {0, 1, 2, 3}
    counts = shares(Counter(labels), 0.2, random.Random(f"{seed}/hold out"))
    assert Counter(items[place].label for place in held) == counts and len(held) == 10
    assert hold_out(items, seed=seed) == (train, held)


def test_the_seed_draws() -> None:
    items = videos(*[0, 1] * 50)
    assert len({tuple(hold_out(items, seed=seed)[1]) for seed in range(4)}) == 4


def test_items_of_one_file_stay_together(tmp_path: Path) -> None:
    (tmp_path / "0.mp4").write_text("")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "0.mp4")
    names = ["link.mp4" if number == 3 else f"{number // 4}.mp4" for number in range(40)]
    items = [VideoItem(tmp_path / name, number % 2) for number, name in enumerate(names)]
    for seed in range(5):
        train, held = hold_out(items, seed=seed)
        sides = [{(tmp_path / names[place]).resolve() for place in side} for side in (train, held)]
        assert not sides[0] & sides[1]
        assert len(held) == 8


def test_few_long_files() -> None:
    # Three files of 30, 10 and 20 segments: a fifth is 12, the file of 10 is nearest; of files of 30 alone one is.
    def long(*lengths: int) -> list[VideoItem]:
        return [VideoItem(Path(f"/v/{n}.mp4"), k % 2) for n, length in enumerate(lengths) for k in range(length)]

    train, held = hold_out(long(30, 10, 20))
    assert (len(train), len(held)) == (50, 10)
    train, held = hold_out(long(30, 30))
    assert (len(train), len(held)) == (30, 30)
    assert hold_out(long(60)) == (list(range(60)), [])


def test_parts_that_a_pack_made_files_of_stay_together() -> None:
    items = [
        VideoItem(Path(f"/pack/{video}_{part}.mp4"), part % 2, cut_from=Path(f"{video}.mp4"))
        for video in range(5)
        for part in range(4)
    ]
    train, held = hold_out(items)
    assert len(held) == 4 and not {items[n].source for n in train} & {items[n].source for n in held}


def test_what_is_on_both_sides_is_told(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    train = [VideoItem(tmp_path / "a/v.mp4", 0, segment=Segment(0, 2))]
    tell_in_both(train, [VideoItem(tmp_path / "b/v.mp4", 0)])
    for other in (
        VideoItem(tmp_path / "a/v.mp4", 0, segment=Segment(3, 4)),
        VideoItem(tmp_path / "packed/v_3.mp4", 0, cut_from=tmp_path / "link/v.mp4"),
    ):
        with pytest.warns(Notice, match="1 are in both lists, such as .*a/v.mp4; the score will be too good"):
            tell_in_both(train, [other])
