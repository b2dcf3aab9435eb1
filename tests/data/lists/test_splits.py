"""Halves of classes and lists as files; published lists as they come."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2clip.data.lists.annotations import Annotations, VideoItem, load_annotations
from m2clip.data.lists.label_sets import load_class_names
from m2clip.data.lists.splits import frequent_half, random_halves, write_list
from m2clip.errors import InputError


def listing(counts: dict[str, int], folder: Path = Path("/videos")) -> Annotations:
    """So many videos of each class."""
    items = [
        VideoItem(folder / name / f"clip ({n}).mp4", label)
        for label, (name, count) in enumerate(counts.items())
        for n in range(count)
    ]
    return Annotations(tuple(items), list(counts), "list", folder / "list.txt")


def test_the_more_frequent_half_is_base_in_label_order() -> None:
    base, novel = frequent_half(listing({"run": 2, "jump": 9, "swim": 5, "ride": 5, "climb": 1}))
    assert base == ["jump", "swim", "ride"] and novel == ["run", "climb"]
    # Equally frequent classes: the first labels are base.
    assert frequent_half(listing({"d": 3, "c": 3, "b": 3, "a": 3})) == (["d", "c"], ["b", "a"])


def test_halves_need_names_and_two_classes() -> None:
    with pytest.raises(InputError, match="no names"):
        frequent_half(Annotations(listing({"a": 1, "b": 1}).items, None, "list", Path("list.txt")))
    with pytest.raises(InputError, match="one class only"):
        frequent_half(listing({"a": 4}))
    with pytest.raises(InputError, match="four classes"):
        random_halves(["a", "b", "c"], 10)


def test_random_halves_are_halves_and_differ() -> None:
    names = load_class_names("hmdb51")
    halves = random_halves(names, 10, seed=1)
    assert len({tuple(half) for half in halves}) == 10
    for half in halves:
        assert len(half) == len(set(half)) == 25 and half == [name for name in names if name in half]
    assert halves == random_halves(names, 10, seed=1) != random_halves(names, 10, seed=2)
    assert halves[:3] == random_halves(names, 3, seed=1)
    # Over many draws every class is drawn about as often as not.
    drawn = random_halves(names, 400, seed=3)
    for name in names:
        assert 0.35 < sum(name in half for half in drawn) / 400 < 0.62


def test_a_written_list_reads_back(tmp_path: Path) -> None:
    annotations = listing({'say "hi", loudly': 2, "swim 2": 3}, tmp_path / "a folder, with 3")
    written = write_list(annotations, tmp_path / "lists" / "train.txt")
    assert written.format == "list" and sorted(p.name for p in written.path.parent.iterdir()) == [
        "train.txt",
        "train_classes.csv",
    ]
    again = load_annotations(written.path, format=written.format, class_names=written.classes)
    assert again.items == annotations.items and again.class_names == annotations.class_names


def test_frame_folders_are_written_with_their_length(tmp_path: Path) -> None:
    items = tuple(VideoItem(tmp_path / f"v {n}", n % 2, 4 + n) for n in range(4))
    annotations = Annotations(items, ["a", "b"], "frames", tmp_path / "list.txt")
    written = write_list(annotations, tmp_path / "out.txt")
    assert written.format == "frames"
    assert load_annotations(written.path, format="frames", class_names=written.classes).items == items
    mixed = Annotations((*items, VideoItem(tmp_path / "x.mp4", 0)), ["a", "b"], "list", tmp_path / "list.txt")
    with pytest.raises(InputError, match="both video files and folders"):
        write_list(mixed, tmp_path / "out.txt")


@pytest.mark.parametrize("frames", [None, 7])
@pytest.mark.parametrize(
    "name", ["a.mp4 ", "a.mp4,", 'a"', "a\nb.mp4", "a;b", "a 3 4", "# a.mp4", "a.mp4 12", "ä.mp4, b"]
)
def test_any_path_is_written_and_read(tmp_path: Path, name: str, frames: int | None) -> None:
    annotations = Annotations((VideoItem(tmp_path / name, 1, frames),), ["a", "b"], "list", tmp_path)
    written = write_list(annotations, tmp_path / "out.txt")
    again = load_annotations(written.path, format=written.format, class_names=written.classes)
    assert again.items == annotations.items


@pytest.mark.parametrize(
    ("lines", "root", "classes", "first"),
    [
        ("brush_hair/April_(1)!_f_nm_np1_ba_goo_0.avi 0\nwave/x#2.avi 50\n", "hmdb51", 51, "brush_hair"),
        ("82469.webm 0\n92816.webm 86\n", "ssv2-base", 87, "82469.webm"),
        ("riding or walking with horse/0Q_s.mp4,159\n", "k600-zs1", 160, "riding or walking with horse"),
    ],
)
def test_published_lists_with_numbering_of_their_own(
    tmp_path: Path, lines: str, root: str, classes: int, first: str
) -> None:
    path = tmp_path / "train1_few_shot_2.txt"
    path.write_text(lines)
    found = load_annotations(path, class_names=root)
    assert found.format == "list" and found.class_names is not None and len(found.class_names) == classes
    assert found.items[0].path.relative_to(tmp_path).parts[0] == first
