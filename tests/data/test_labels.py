"""Class lists: the packaged ones are complete, and every file format is read or refused in one line."""

import json
from pathlib import Path

import pytest

from m2clip.data.label_sets import LABEL_SETS, load_class_names, match_key, prompt_name
from m2clip.errors import InputError

COUNTS = {"k400": 400, "k600": 600, "ssv2": 174, "ucf101": 101, "hmdb51": 51}


@pytest.mark.parametrize(("name", "count"), LABEL_SETS.items())
def test_built_in_list_is_complete_and_unambiguous(name: str, count: int) -> None:
    names = load_class_names(name)
    assert len(names) == count
    assert len({match_key(entry) for entry in names}) == count
    assert all(entry == entry.strip() and entry for entry in names)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    assert LABEL_SETS[name] == COUNTS[name]


@pytest.mark.parametrize("name", ["k400", "ssv2", "ucf101", "hmdb51"])
def test_base_and_novel_halves_partition_the_set(name: str) -> None:
    base, novel = load_class_names(f"{name}-base"), load_class_names(f"{name}-novel")
    assert sorted(base + novel) == sorted(load_class_names(name))


@pytest.mark.parametrize("split", [1, 2, 3])
def test_zero_shot_kinetics_600_classes_are_outside_kinetics_400(split: int) -> None:
    unseen = set(load_class_names(f"k600-zs{split}"))
    assert len(unseen) == 160
    assert unseen <= set(load_class_names("k600"))
    assert not unseen & set(load_class_names("k400"))


def test_kinetics_labels_are_in_sorted_order() -> None:
    assert load_class_names("k400") == sorted(load_class_names("k400"))


def test_names_with_commas_survive() -> None:
    assert "Lifting something up completely, then letting it drop down" in load_class_names("ssv2")


@pytest.mark.parametrize("typo", ["k40", "ucf-101", "hmdb51-bas"])
def test_typo_suggests_close_names(typo: str) -> None:
    with pytest.raises(InputError, match="did you mean (k400|ucf101|hmdb51-base)"):
        load_class_names(typo)


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(InputError, match="built-in lists: k400, .*hmdb51-novel"):
        load_class_names("zzzzzz")


CLASS_FILES = {
    "lf.csv": b'id,name\n0,run\n1,"jump, high"\n',
    "crlf.csv": b'id,name\r\n0,run\r\n1,"jump, high"\r\n',
    "bom.csv": b'\xef\xbb\xbfid,name\n0,run\n1,"jump, high"\n',
    "no_header.csv": b"1,jump, high\n0,run\n",
    "plain.txt": b"run\n\njump, high\n",
    "labels.json": json.dumps({"jump, high": "1", "run": "0"}).encode(),
    "classInd.txt": b"1 run\n2 jump, high\n",
}


@pytest.mark.parametrize("file", CLASS_FILES)
def test_class_file_formats(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(CLASS_FILES[file])
    assert load_class_names(tmp_path / file) == ["run", "jump, high"]


BAD_CLASS_FILES = {
    "empty.txt": (b"\n\n", "holds no class names"),
    "header.csv": (b"id,name\n", "holds no class names"),
    "twice.csv": (b"id,name\n0,run\n0,jump\n", r"line 3: id 0 is already taken by 'run'"),
    "same.txt": (b"run\njump\nrun\n", r"line 3: class 'run' is already on line 1"),
    "gap.csv": (b"id,name\n0,run\n2,jump\n", r"class id 1 is missing"),
    "from_one.csv": (b"id,name\n1,run\n2,jump\n", r"class id 0 is missing"),
    "column.csv": (b"id,name\n0,run\njump\n", r"line 3: expected `id,name`"),
    "nameless.csv": (b"id,name\n0,run\n1,\n", r"line 3: the class name is empty"),
    "latin1.txt": (b"run\ncaf\xe9\n", r"line 2: not valid UTF-8"),
    "broken.json": (b'{"run": "0",\n', r"line 2: not valid JSON"),
    "list.json": (b'["run"]', r"found a list"),
    "word.json": (b'{"run": "zero"}', r"entry 1: id 'zero'"),
}


@pytest.mark.parametrize("file", BAD_CLASS_FILES)
def test_bad_class_file_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    content, message = BAD_CLASS_FILES[file]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_class_names(tmp_path / file)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("TVShow", "TV Show"),
        ("brush_hair", "brush hair"),
        ("Putting [something] on [something]", "Putting something on something"),
        ("riding a BMX bike", "riding a BMX bike"),
    ],
)
def test_prompt_name(name: str, words: str) -> None:
    assert prompt_name(name) == words


@pytest.mark.parametrize("name", ["k400", "ssv2", "hmdb51"])
def test_prompt_name_leaves_names_of_words_alone(name: str) -> None:
    names = load_class_names(name)
    assert [prompt_name(entry) for entry in names] == names
