"""The lists of a run on somebody's own videos: what they are made of, and that they stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from m2clip.config import load_config
from m2clip.config_fields import DataConfig
from m2clip.data import train_lists
from m2clip.data.check.files import Depth
from m2clip.data.check.lists import Problem, Report
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.train_lists import TrainLists, prepare_lists
from m2clip.errors import InputError, Notice
from m2clip.train.auto import Machine, Tower, choose
from tests.data.video_files import write_video

BAD = b"<html>404</html>"


def videos(folder: Path, *names: str, first: int = 4) -> Path:
    """Small videos, each of another length, so that no two are the same file."""
    for number, name in enumerate(names):
        write_video(folder / name, first + number, size=(32, 32), options={"crf": "40", "preset": "ultrafast"})
    return folder


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of two classes, one of which is unreadable."""
    folder = videos(
        tmp_path_factory.mktemp("ten") / "data", *(f"{c}/v{n}.mp4" for c in ("jump", "run") for n in range(5))
    )
    (folder / "run" / "v3.mp4").write_bytes(BAD)
    return folder


def split(lists: TrainLists, folder: Path) -> tuple[list[str], list[str]]:
    """class/name of the videos of both lists."""

    def names(file: str | None) -> list[str]:
        if file is None:
            return []
        found = load_annotations(folder / file, format=lists.format, class_names=folder / lists.classes)
        assert all(item.path.is_absolute() for item in found.items)
        assert [item.path.parent.name for item in found.items] == [
            found.class_names[item.label] for item in found.items
        ]
        return [f"{item.path.parent.name}/{item.path.name}" for item in found.items]

    return names(lists.train), names(lists.val)


def test_a_folder_of_class_folders(ten: Path, tmp_path: Path) -> None:
    lists = prepare_lists(DataConfig(train=str(ten)), tmp_path / "lists")
    train, val = split(lists, tmp_path / "lists")
    assert len(train) == 7 and len(val) == 2 and not set(train) & set(val)
    assert sorted(train + val) == sorted(
        f"{c}/v{n}.mp4" for c in ("jump", "run") for n in range(5) if (c, n) != ("run", 3)
    )
    assert sorted(name.split("/")[0] for name in val) == ["jump", "run"]
    assert (lists.counts, lists.classes_used, lists.problems) == ({"train": 7, "val": 2}, 2, {"unreadable": 1})
    report = tmp_path / "lists" / "check" / "report.json"
    assert lists.told[0] == f"left out: 1 of 10 videos, all named in {report}"
    assert lists.told[1].startswith(f"  unreadable: {ten}/run/v3.mp4: ")
    assert lists.told[2] == "held out: 2 of 9 videos, to choose weights and to score by (seed 0)"
    assert [problem["kind"] for problem in json.loads(report.read_text())["problems"]] == ["unreadable"]


def test_the_same_videos_as_lists(ten: Path, tmp_path: Path) -> None:
    found = sorted(ten.rglob("*.mp4"))
    rows = [(str(path), path.parent.name) for path in found]
    (tmp_path / "list.csv").write_text("video,label\n" + "".join(f"{path},{name}\n" for path, name in rows))
    lines = [json.dumps({"video": path, "label": name}) for path, name in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n")
    whole = prepare_lists(DataConfig(train=str(ten)), tmp_path / "whole")
    for name in ("list.csv", "list.jsonl"):
        lists = prepare_lists(DataConfig(train=str(tmp_path / name)), tmp_path / f"of {name}")
        assert split(lists, tmp_path / f"of {name}") == split(whole, tmp_path / "whole")
        assert lists.problems == {"unreadable": 1}


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "validation"), ("train", "test")])
def test_a_folder_of_train_and_val(tmp_path: Path, train: str, val: str) -> None:
    names = [f"{part}/{c}/v{n}.mp4" for part, n in ((train, 0), (train, 1), (val, 2)) for c in ("jump", "run")]
    folder = videos(tmp_path / "data", *names)
    lists = prepare_lists(DataConfig(train=str(folder)), tmp_path / "lists")
    assert split(lists, tmp_path / "lists") == (
        ["jump/v0.mp4", "jump/v1.mp4", "run/v0.mp4", "run/v1.mp4"],
        ["jump/v2.mp4", "run/v2.mp4"],
    )
    assert lists.told == [f"held out: the 2 videos of {folder / val}, to choose weights and to score by"]


def test_val_goes_before_test(tmp_path: Path) -> None:
    names = [f"{part}/{c}/{part}.mp4" for part in ("train", "test", "val") for c in ("jump", "run")]
    lists = prepare_lists(DataConfig(train=str(videos(tmp_path / "data", *names))), tmp_path / "lists")
    assert split(lists, tmp_path / "lists")[1] == ["jump/val.mp4", "run/val.mp4"]


def test_a_class_named_train(tmp_path: Path) -> None:
    folder = videos(tmp_path / "data", *(f"{c}/v{n}.mp4" for c in ("plane", "train", "test drive") for n in range(2)))
    lists = prepare_lists(DataConfig(train=str(folder)), tmp_path / "lists")
    assert lists.classes_used == 3


def test_lists_of_ones_own(ten: Path, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(f"video,label\n{ten}/jump/v0.mp4,jump\n{ten}/run/v0.mp4,run\n")
    lists = prepare_lists(DataConfig(train=str(ten), val=str(tmp_path / "val.csv")), tmp_path / "lists")
    train, val = split(lists, tmp_path / "lists")
    assert len(train) == 9 and val == ["jump/v0.mp4", "run/v0.mp4"]
    assert lists.told[-1].startswith("held out: the 2 videos of ")
    rows = "".join(
        f"{ten}/{c}/v{n}.mp4,{c},{'val' if n == 0 else 'train'}\n" for c in ("jump", "run") for n in range(3)
    )
    (tmp_path / "table.csv").write_text("video,label,split\n" + rows)
    data = DataConfig(train=str(tmp_path / "table.csv"), train_split="train", val_split="val")
    train, val = split(prepare_lists(data, tmp_path / "table"), tmp_path / "table")
    assert (len(train), val) == (4, ["jump/v0.mp4", "run/v0.mp4"])


def test_the_lists_stay(ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lists"
    first = prepare_lists(DataConfig(train=str(ten)), folder, seed=3)
    text = (folder / "train.txt").read_text()
    monkeypatch.setattr(train_lists, "check_list", None)  # nothing is looked at again
    assert prepare_lists(DataConfig(train=str(ten)), folder, seed=3) == first
    moved = shutil.copytree(ten, tmp_path / "data")
    assert prepare_lists(DataConfig(train=str(moved)), folder, begun=True) == first
    (ten / "run" / "v3.mp4").rename(ten / "run" / "v9.mp4")
    try:
        with pytest.warns(Notice, match=r"data: other videos or labels than when the run began"):
            prepare_lists(DataConfig(train=str(ten)), folder, begun=True)
    finally:
        (ten / "run" / "v9.mp4").rename(ten / "run" / "v3.mp4")
    assert (folder / "train.txt").read_text() == text
    csv = tmp_path / "other.csv"
    csv.write_text(f"video,label\n{ten}/jump/v0.mp4,jump\n{ten}/run/v0.mp4,run\n")
    with pytest.raises(
        InputError, match=r"the output holds a run on .*data, other videos than .*other.csv: give another"
    ):
        prepare_lists(DataConfig(train=str(csv)), folder, begun=True)
    monkeypatch.undo()
    other = prepare_lists(DataConfig(train=str(csv)), folder)  # nothing was trained yet
    assert other.counts == {"train": 2, "val": 0}


def refused(tmp_path: Path, data: DataConfig, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        prepare_lists(data, tmp_path / "lists")
    assert "\n" not in str(error.value)


def test_a_class_that_loses_all_its_videos(tmp_path: Path) -> None:
    folder = videos(tmp_path / "data", "jump/v0.mp4", "jump/v1.mp4", "run/v0.mp4", "run/v1.mp4")
    for name in ("v0", "v1"):
        (folder / "run" / f"{name}.mp4").write_bytes(BAD + name.encode())
    refused(
        tmp_path,
        DataConfig(train=str(folder)),
        r"data: no video of class 'run' can be trained on: .*2 of 4 videos, .*; unreadable: ",
    )


def test_videos_that_are_too_few_or_none(tmp_path: Path) -> None:
    refused(tmp_path, DataConfig(), "which videos")
    one = videos(tmp_path / "one", "jump/v0.mp4", "jump/v1.mp4")
    refused(tmp_path, DataConfig(train=str(one)), r"one: has videos of one class only, 'jump': training needs two")
    flat = videos(tmp_path / "flat", "v0.mp4", "v1.mp4")
    refused(tmp_path, DataConfig(train=str(flat)), "expected one sub-folder of videos per class")
    bad = tmp_path / "bad"
    for name in ("jump", "run"):
        (bad / name).mkdir(parents=True)
        (bad / name / "v.mp4").write_bytes(BAD)
    refused(tmp_path, DataConfig(train=str(bad)), "none of its 2 videos can be read")
    numbers = tmp_path / "numbers.csv"
    numbers.write_text(f"video,label\n{one}/jump/v0.mp4,0\n{one}/jump/v1.mp4,1\n")
    refused(tmp_path, DataConfig(train=str(numbers)), "class numbers but no names: give --data.classes")


def test_one_video_of_each_class(tmp_path: Path) -> None:
    folder = videos(tmp_path / "data", "jump/v0.mp4", "run/v0.mp4")
    lists = prepare_lists(DataConfig(train=str(folder)), tmp_path / "lists")
    assert (lists.val, lists.counts) == (None, {"train": 2, "val": 0})
    assert "there will be no score" in lists.told[-1]


@pytest.mark.parametrize(("most", "decode"), [(10, "sampled"), (9, "count")])
def test_of_many_videos_each_is_opened_only(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, decode: str
) -> None:
    monkeypatch.setattr(train_lists, "MOST_DECODED", most)
    prepare_lists(DataConfig(train=str(ten)), tmp_path / "lists")
    report = json.loads((tmp_path / "lists" / "check" / "report.json").read_text())
    assert report["decode"] == decode


def test_a_copy_is_not_on_both_sides(ten: Path, tmp_path: Path) -> None:
    folder = videos(tmp_path / "data", *(f"{c}/v{n}.mp4" for c in ("jump", "run") for n in range(5)))
    (folder / "jump" / "copy.mp4").write_bytes((folder / "jump" / "v0.mp4").read_bytes())
    (folder / "run" / "copy.mp4").write_bytes((folder / "jump" / "v1.mp4").read_bytes())
    lists = prepare_lists(DataConfig(train=str(folder)), tmp_path / "lists")
    assert lists.problems == {"duplicate": 2, "mislabelled": 2}
    train, val = split(lists, tmp_path / "lists")
    left = [f"{c}/v{n}.mp4" for c in ("jump", "run") for n in range(5) if (c, n) not in (("jump", 0), ("jump", 1))]
    assert sorted(train + val) == sorted(["jump/copy.mp4", *left])


def test_files_of_others_are_not_replaced(ten: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "lists.json").write_text("years of work")
    refused(tmp_path, DataConfig(train=str(ten)), "is there already")


@pytest.mark.slow
def test_a_hundred_thousand_videos_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, classes = 100_000, 400
    listed = tmp_path / "list.csv"
    listed.write_text("video,label\n" + "".join(f"/v/{n}.mp4,class {n % classes}\n" for n in range(count)))
    depths = []

    def fake(path: Path, output: Path, *, depth: Depth, **reading: object) -> Report:
        depths.append(depth.decode)
        names = output / "classes.csv"
        output.mkdir(parents=True)
        names.write_text("id,name\n" + "".join(f"{label},class {label}\n" for label in range(classes)))
        (output / "clean.txt").write_text("".join(f"/v/{n}.mp4 {n % classes}\n" for n in range(1, count)))
        made = Report(str(path), "list", count, depth.decode, 8, clean=count - 1)
        made.problems = [Problem("missing", "/v/0.mp4", 0, "list.csv, line 2", "no such file")]
        made.clean_list, made.class_file = str(output / "clean.txt"), str(names)
        return made

    monkeypatch.setattr(train_lists, "check_list", fake)
    lists = prepare_lists(DataConfig(train=str(listed)), tmp_path / "lists")
    assert depths == ["count"] and lists.problems == {"missing": 1}
    assert lists.counts == {"train": 79_999, "val": 20_000} and lists.classes_used == classes
    machine, tower = Machine("cuda", 100 << 30, 16, bf16=True), Tower(197, 768, 12)
    found = choose(load_config("auto", ["model.clip=ViT-B-16"]), {"model.clip"}, 79_999, ["a"], machine, tower)
    assert (found["optim.batch_size"], found["data.repeat"], found["optim.epochs"]) == (64, 2, 7)
