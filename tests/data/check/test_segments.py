"""Checking and packing lists of parts: each part is looked at by itself, and two of one file are no copies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from m2clip.data.check.files import Depth
from m2clip.data.check.lists import check_list
from m2clip.data.check.parts import check_parts
from m2clip.data.clips import ClipSettings, open_item
from m2clip.data.lists.annotations import list_hash, load_annotations
from m2clip.data.packs.pack import pack
from m2clip.data.packs.settings import PackSettings
from m2clip.errors import InputError
from tests.data import video_files as files

LINES = ["a.mp4,0,0.4,0", "a.mp4,0.8,1.2,1", "b.mp4,0.8,1.2,1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write_video(tmp_path / "a.mp4")
    files.write_video(tmp_path / "b.mp4", size=(80, 64))
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(["path,start,end,label", *lines]) + "\n")
    return path


def test_parts_are_checked(folder: Path) -> None:
    shutil.copy(folder / "b.mp4", folder / "copy.mp4")
    bad = ["a.mp4,1.2,1.9,0", "a.mp4,1,1,0", "a.mp4,-1,1,0", "a.mp4,nan,1,0", "b.mp4,0.8,1.20,1", "copy.mp4,0.8,1.2,1"]
    report = check_list(write(folder, *LINES, *bad, "gone.mp4,0,1,0"), folder / "out", workers=2)
    found = [(problem.kind, problem.where.rpartition(" ")[2], problem.segment) for problem in report.problems]
    assert found == [
        ("segment", "5", "1.2-1.9"),
        ("segment", "6", "1-1"),
        ("segment", "7", "-1-1"),
        ("segment", "8", "nan-1"),
        ("duplicate", "9", "0.8-1.2"),
        ("duplicate", "10", "0.8-1.2"),
        ("missing", "11", "0-1"),
    ]
    assert "the segment 1.2-1.9 s ends after the video, which lasts 1.6 s" in report.problems[0].message
    assert "the same path and part" in report.problems[4].message and "same content as" in report.problems[5].message
    clean = load_annotations(folder / "out" / "clean.txt")
    assert [(item.path.name, tuple(item.segment or ()), item.label) for item in clean.items] == [
        ("a.mp4", (0, 0.4), 0),
        ("a.mp4", (0.8, 1.2), 1),
        ("b.mp4", (0.8, 1.2), 1),
    ]
    again = check_list(folder / "list.csv", folder / "out", workers=1)
    assert again.looked_at == 0 and again.problems == report.problems


def test_parts_are_no_copies_whatever_is_decoded(folder: Path) -> None:
    for decode in ("none", "count", "full"):
        report = check_list(write(folder, *LINES), folder / decode, depth=Depth(decode), workers=1)
        assert (report.clean, report.problems) == (3, [])


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_packs_of_parts(folder: Path, kind: str) -> None:
    listed = load_annotations(write(folder, *LINES), class_names=["x", "y"])
    manifest = pack(listed, folder / "pack", PackSettings(kind, frames=None, isolate=False), workers=1)
    assert manifest["counts"]["packed"] == 3 and not manifest["failures"]
    packed = load_annotations(folder / "pack")
    for item, first in zip(packed.items, (0, 20, 20), strict=True):
        with open_item(item, ClipSettings()) as video:
            assert [files.read_code(frame) for frame in video.read(range(video.num_frames))] == list(
                range(first, first + 10)
            )
            assert video.seconds([0, 9]) == pytest.approx([0, 0.36])
    assert [item.label for item in packed.items] == [0, 1, 1]
    if kind == "frames":
        assert list_hash(packed.items) == list_hash(listed.items)
        assert [item.segment for item in packed.items] == [item.segment for item in listed.items]
    else:
        names = [line.split()[0] for line in (folder / "pack" / "list.txt").read_text().splitlines()]
        assert names == ["videos/a_0-0.4.mp4", "videos/a_0.8-1.2.mp4", "videos/b_0.8-1.2.mp4"]
    # The same call changes nothing; other parts are another list.
    again = pack(listed, folder / "pack", PackSettings(kind, frames=None, isolate=False), workers=1)
    assert json.dumps(again) == json.dumps(manifest)
    with pytest.raises(Exception, match="list"):
        other = load_annotations(write(folder, *LINES[:2], "b.mp4,0.4,1.2,1"), class_names=["x", "y"])
        pack(other, folder / "pack", PackSettings(kind, frames=None, isolate=False), workers=1)


@pytest.mark.parametrize("isolate", [False, True])
def test_parts_that_are_not_there_are_refused_before_training(folder: Path, isolate: bool) -> None:
    check_parts(load_annotations(write(folder, *LINES, "gone.mp4,0,99,1")), isolate)
    late = load_annotations(write(folder, *LINES, "b.mp4,0.1,1.9,1", "b.mp4,3,4,0"))
    with pytest.raises(InputError, match="2 of 5 parts are not in their videos, first .*b.mp4: the segment 0.1-1.9 s"):
        check_parts(late, isolate)
