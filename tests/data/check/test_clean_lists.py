"""Clean lists of `m2clip check`: any name and any format is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2clip.data.check.files import Depth
from m2clip.data.check.lists import check_list
from m2clip.data.lists.annotations import load_annotations


def test_a_clean_list_holds_any_name(tmp_path: Path) -> None:
    names = ["two\nlines.mp4", "a, b.mp4", "# 1.mp4", 'say "c".mp4', " 7.mp4", "x.mp4 3 4.mp4", "[1].mp4"]
    for name in names:
        (tmp_path / "set" / "jump").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "jump" / name).write_bytes(name.encode())
    report = check_list(tmp_path / "set", depth=Depth("none"))
    again = load_annotations(report.clean_list, class_names=report.class_file)
    assert sorted(item.path.name for item in again.items) == sorted(names) and report.problems == []


FORMATS = {
    "list.csv": 'path;label\n"set/jump/1.mp4";jump\nset/walk/2.mp4;"walk"\n',
    "list.jsonl": '{"video": "set/jump/1.mp4", "label": 0}\n{"video": "set/walk/2.mp4", "label": 1}\n',
    "list.txt": "set/jump/1 12 0\nset/walk/2 14 1\n",
    "testlist01.txt": "set/jump/1.mp4 0\nset/walk/2.mp4 1\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_clean_list_of_any_format_is_read_again(tmp_path: Path, name: str) -> None:
    for place in ("set/jump/1.mp4", "set/walk/2.mp4"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(place.encode())
    (tmp_path / name).write_text(FORMATS[name])
    report = check_list(tmp_path / name, class_names=["jump", "walk"], depth=Depth("none"))
    again = load_annotations(report.clean_list, class_names=report.class_file)
    assert [(item.path.resolve(), item.label, item.num_frames) for item in again.items] == [
        (tmp_path / "set/jump/1.mp4", 0, None),
        (tmp_path / "set/walk/2.mp4", 1, None),
    ]
