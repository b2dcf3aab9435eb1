"""Lists whose folders contradict their labels are refused, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2clip.cli import main
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.lists.folder_labels import contradicted
from m2clip.data.lists.label_sets import load_class_names
from m2clip.data.lists.rows import Row
from m2clip.errors import InputError
from tests.data.lists.test_class_files import calls

CLASSES = ["kick", "kick ball", "sword", "sword exercise", "test", "train", "chase", "run"]


def rows(*lines: str, root: str = "/data") -> list[Row]:
    parts = [line.rsplit(" ", 1) for line in lines]
    return [Row(f"l.txt, line {n}", Path(root, path), int(label)) for n, (path, label) in enumerate(parts, 1)]


CONTRADICTED = {
    "swapped": (["kick/a 1", "kick_ball/b 0", "sword/c 2", "run/d 7"], {0: "kick", 1: "kick ball"}),
    "one": (["kick/a 0", "kick/b 0", "kick/c 2", "sword/d 2"], {2: "kick"}),
    "shuffled": (["kick/a 7", "kick/b 2", "sword/c 0", "sword/d 7"], {0: "kick", 1: "kick", 2: "sword", 3: "sword"}),
    "beside no class": (["kick/a 1", "kick/b 1", "misc/c 0"], {0: "kick", 1: "kick"}),
    "below a split": (["train/kick/a 1", "train/sword/b 2", "test/run/c 7"], {0: "kick"}),
    "below persons": (["kick/anna/a 0", "sword/ben/b 3", "run/eve/c 7"], {1: "sword"}),
    "persons above": (["anna/kick/a 0", "ben/sword/b 3", "eve/run/c 7"], {1: "sword"}),
    "vehicles": (["train/a 7", "run/b 7", "kick/c 0", "chase/d 6"], {0: "train"}),
    "other letters": (["Kick_Ball/a 0", "SwordExercise/b 3", "kick-ball/c 0"], {0: "kick ball", 2: "kick ball"}),
}
PASSING = {
    "right": ["kick/a 0", "kick_ball/b 1", "sword/c 2"],
    "no class": ["x/a 0", "y/b 1", "z/c 2"],
    "splits": ["train/a 0", "test/b 1", "test/c 4", "train/d 7"],
    "split and person": ["train/chase/a 0", "test/anna/b 1", "test/ben/c 7"],
    "persons": ["chase/a 0", "chase/b 7", "anna/c 1"],
    "more persons": ["chase/a 0", "anna/b 1", "ben/c 7", "chase/d 0"],
    "one folder": ["run/a 0", "run/b 1"],
    "own folder above": ["kick/run/a 0", "sword/run/b 2", "sword/chase/c 2"],
    "own folder below": ["run/kick/a 0", "chase/sword/b 2"],
    "name of the file": ["x/kick 2", "y/sword 0"],
    "no folder": ["kick.mp4 1", "sword.mp4 0"],
}


@pytest.mark.parametrize("name", CONTRADICTED)
@pytest.mark.parametrize("root", ["/data", "/data/run/videos", "."])
def test_contradicted(name: str, root: str) -> None:
    lines, expected = CONTRADICTED[name]
    assert contradicted(rows(*lines, root=root), CLASSES) == expected


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("root", ["/data", "/data/run", "/test/sword"])
def test_passing(name: str, root: str) -> None:
    assert contradicted(rows(*PASSING[name], root=root), CLASSES) == {}


def test_a_list_of_hmdb51_in_the_order_of_mmaction(tmp_path: Path) -> None:
    names = load_class_names("hmdb51")
    order = list(names)
    for one, other in (("kick", "kick ball"), ("sword", "sword exercise")):
        first, second = order.index(one), order.index(other)
        order[first], order[second] = other, one
    assert order != names
    path = tmp_path / "hmdb51_train_split_1_videos.txt"
    path.write_text(
        "".join(f"{name.replace(' ', '_')}/{n}.avi {label}\n" for label, name in enumerate(order) for n in "ab")
    )
    assert len(load_annotations(path, class_names=order).items) == 102
    assert len(load_annotations(path)) == 102
    with pytest.raises(
        InputError, match=r"8 of 102 videos .* labelled '.*', in the folder of '.*data.allow_mismatched"
    ):
        load_annotations(path, class_names="hmdb51")
    assert len(load_annotations(path, class_names="hmdb51", allow_mismatched_folders=True)) == 102


def test_every_built_in_set_agrees_with_folders_of_its_names() -> None:
    for name in ("k400", "ucf101", "hmdb51", "ssv2", "k600"):
        names = load_class_names(name)
        found = [
            Row("", Path("/v", one.replace("/", " ").replace(" ", "_"), "a.mp4"), n) for n, one in enumerate(names)
        ]
        assert contradicted(found, names) == {}


def test_work_grows_as_the_list() -> None:
    def find(count: int) -> int:
        names = [f"class {n}" for n in range(count)]
        return calls(contradicted, [Row("", Path(f"/v/class_{n}/p{n}/a.mp4"), n) for n in range(count)], names)

    assert find(400) < 2.1 * find(200)


def test_commands_take_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "l.txt").write_text("kick/a.mp4 1\nkick/b.mp4 1\nsword/c.mp4 0\nsword/d.mp4 0\n")
    (tmp_path / "c.txt").write_text("kick\nsword\n")
    command = ["episodes", "list", "--list", str(tmp_path / "l.txt"), "--classes", str(tmp_path / "c.txt")]
    command += ["--way", "2", "--shots", "1", "--queries", "1", "--episodes", "1", "--output", str(tmp_path / "e")]
    assert main(command) == 2
    assert "4 of 4 videos lie in the folder of another class" in capsys.readouterr().err
    assert main([*command, "--allow-mismatched-folders"]) == 0
