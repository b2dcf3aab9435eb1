"""Class files as people write them are read, or refused in one line that shows how they could be read."""

import json
import os
import sys
from pathlib import Path

import pytest

from m2clip.data.lists.class_files import class_table, numbered_classes, parse_class_file
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError

JUMP = '"jump, high"'
READ = {
    "lf.csv": f"id,name\n0,run\n1,{JUMP}\n",
    "crlf.csv": f"id,name\r\n0,run\r\n1,{JUMP}\r\n",
    "cr.csv": f"id,name\r0,run\r1,{JUMP}\r",
    "bom.csv": f"\ufeffid,name\n0,run\n1,{JUMP}\n",
    "name_first.csv": f"name,id\n{JUMP},1\nrun,0\n",
    "name_first_bare.csv": "name,id\njump, high,1\nrun,0\n",
    "quoted.csv": f'"id","name"\n"0","run"\n"1",{JUMP}\n',
    "semicolon.csv": "Name;Class ID\nrun;0\njump, high;1\n",
    "tab.tsv": "label\tname\n0\trun\n1\tjump, high\n",
    "both_words.csv": f"class,label\nrun,0\n{JUMP},1\n",
    "more_columns.csv": f"id,name,videos\n0,run,17\n1,{JUMP},4\n",
    "header_of_names.txt": "class_name\nrun\njump, high\n",
    "spaces.txt": "id name\n0 run\n1 jump, high\n",
    "no_header.csv": "1,jump, high\n0,run\n",
    "no_header_name_first.csv": "jump, high,1\nrun,0\n",
    "no_header_semicolon.csv": "jump, high;1\nrun;0\n",
    "from_one.csv": f"id,name\n1,run\n2,{JUMP}\n",
    "colon.txt": "0: run\n1: jump, high\n",
    "colon_behind.txt": "run: 0\njump, high: 1\n",
    "numbered.txt": "1. run\n2. jump, high\n",
    "numbered_dashes.txt": "0 - run\n1 - jump, high\n",
    "coded.txt": "c000 run\nc001 jump, high\n",
    "bullets.txt": "* run\n* jump, high\n",
    "bars.txt": "run|0\njump, high|1\n",
    "camel.csv": f"ClassId,ClassName\n0,run\n1,{JUMP}\n",
    "category.csv": f"category_id,category\n0,run\n1,{JUMP}\n",
    "epic.csv": f"id,key,instances,category\n0,run,\"['run', 'dash']\",motion\n1,{JUMP},['hop'],motion\n",
    "foreign.csv": "ID;Bezeichnung\n0;run\n1;jump, high\n",
    "pandas.csv": f",name\n0,run\n1,{JUMP}\n",
    "excel.csv": "sep=;\nid;name;\n0;run;\n;;\n1;jump, high;\n",
    "excel_no_header.csv": "0;run;\n;\n1;jump, high;\n",
    "arrows.txt": "0 -> run\n1 -> jump, high\n",
    "double_arrows.txt": "0 => run\n1 => jump, high\n",
    "comments_behind.txt": "run # fast\njump, high  #\n",
    "plain.txt": "run\n\njump, high\n",
    "one_comma.txt": "run,\njump, high\n",
    "plain_quoted.txt": f"'run'\n{JUMP}\n",
    "plain_commas.txt": f'"run",\n{JUMP}\n',
    "comments.txt": "# two classes\nrun\n# the other\njump, high\n",
    "comments.csv": f"# two classes\nid,name\n0,run\n#1,walk\n1,{JUMP}\n",
    "line_break.csv": 'id,name\n0,run\n1,"jump,\nhigh"\n',
    "classInd.txt": "1 run\n2 jump, high\n",
    "labels.json": json.dumps({"jump, high": "1", "run": "0"}),
    "by_id.json": json.dumps({"1": "jump, high", "0": "run"}),
    "list.json": json.dumps(["run", "jump, high"]),
    "entries.json": json.dumps([{"id": 1, "name": "jump, high"}, {"id": 0, "name": "run"}]),
    "pairs.json": json.dumps([["run", 0], ["jump, high", 1]]),
    "named.json": json.dumps([{"name": "run"}, {"name": "jump, high"}]),
    "config.json": json.dumps({"id2label": {"0": "run", "1": "jump, high"}, "label2id": {"run": 0}, "size": 224}),
    "quoted_twice.json": json.dumps({'"jump, high"': 1, "run": 0}),
    "quoted_twice_list.json": json.dumps(["run", '"jump, high"']),
    "coco.json": json.dumps({"categories": [{"id": 1, "name": "run"}, {"id": 2, "name": "jump, high"}]}),
    "lines.jsonl": '{"id": 1, "name": "jump, high"}\n{"id": 0, "name": "run"}\n',
    "dives.json": json.dumps([["run"], ["jump,", "high"]]),
    "list.yaml": f"- run\n- {JUMP}\n",
    "map.yml": "0: run\n1: jump, high\n",
    "data.yaml": "path: videos\nnc: 2\nnames:\n  0: run\n  1: jump, high  # the second\n",
    "list_in_text.txt": "- run\n- jump, high\n",
    "yaml_in_text.txt": "names:\n- run\n- jump, high\n",
    "data_in_text.txt": "path: videos\nnc: 2\nnames: ['run', 'jump, high']\n",
    "python.txt": "['run', 'jump, high']\n",
    "json_in_text.txt": json.dumps(["run", "jump, high"], indent=1),
}


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("file", READ)
def test_is_read(tmp_path: Path, file: str) -> None:
    assert load_class_names(write(tmp_path, file, READ[file])) == ["run", "jump, high"]


OTHERS = {
    "digits.txt": ("run\n3 point shot\n100 m race\nwalk\n", ["run", "3 point shot", "100 m race", "walk"]),
    "digits.csv": ("3 point shot,0\nrun,1\n", ["3 point shot", "run"]),
    "digits_behind.csv": ("0;3 point shot\n1;take 2\n", ["3 point shot", "take 2"]),
    "digits_header.txt": ("name\n1 leg stand\n2 leg stand\n", ["1 leg stand", "2 leg stand"]),
    "steps.txt": ("step 1\nstep 2\nend\n", ["step 1", "step 2", "end"]),
    "digits_alone.csv": ("id,name\n0,10\n1,2\n", ["10", "2"]),
    "words.yaml": ("- yes\n- no\n- 1:30\n- 2020-01-01\n", ["yes", "no", "1:30", "2020-01-01"]),
    "signs.txt": ('C# coding\n#1 fan = me\n"press # key"\n', ["C# coding", "press # key"]),
    "accents.txt": ("cafe\u0301\nrun\n", ["cafe\u0301", "run"]),
    "brackets.txt": ("[something] falls\nHolding [something]\n", ["[something] falls", "Holding [something]"]),
}


@pytest.mark.parametrize("file", OTHERS)
def test_names_that_look_like_something_else(tmp_path: Path, file: str) -> None:
    content, names = OTHERS[file]
    assert load_class_names(write(tmp_path, file, content)) == names


REFUSED = {
    "empty.txt": ("\n\n", "holds no class names"),
    "header.csv": ("id,name\n", "holds no class names"),
    "twice.csv": ("id,name\n0,run\n0,jump\n", r"line 3: id 0 is already taken by 'run'"),
    "same.txt": ("run\njump\nrun\n", r"line 3: class 'run' is already on line 1"),
    "same_key.txt": ("Brush hair\nbrush_hair\n", r"line 2: class 'brush_hair' is already on line 1 as 'Brush hair'"),
    "same_accent.txt": ("caf\u00e9\ncafe\u0301\n", r"line 2: class .* is already on line 1"),
    "same.yaml": ("run: 0\njump: 1\nrun: 2\n", r"'run' is given twice"),
    "same.json": ('{"run": 0, "jump": 1, "run": 2}', r"'run' is given twice"),
    "gap.csv": ("id,name\n0,run\n2,jump\n", r"class id 1 is missing"),
    "from_two.csv": ("id,name\n2,run\n3,jump\n", r"class id 0 is missing"),
    "column.csv": ("id,name\n0,run\njump\n", r"line 3: expected `id,name`"),
    "column_2.csv": ("name,id\nrun,0\njump\n", r"line 3: expected `name,id`"),
    "nameless.csv": ("id,name\n0,run\n1,\n", r"line 3: the class name is empty"),
    "latin1.txt": (b"run\ncaf\xe9\n", r"line 2: not valid UTF-8"),
    "utf16.txt": ("run\njump\n".encode("utf-16"), r"text in UTF-16 or UTF-32; save the file as UTF-8"),
    "utf16_bare.txt": ("run\njump\n".encode("utf-16-le"), r"text in UTF-16"),
    "broken.json": ('{"run": "0",\n', r"line 2: not valid JSON"),
    "broken.txt": ('{"run": "0",\n"jump"\n', r"not valid YAML"),
    "word.json": ('{"run": "zero"}', r"entry 1: id 'zero'"),
    "true.json": ("[true]", r"entry 1: expected a class name"),
    "text.json": ('"run"', r"found a str"),
    "digits.json": ('{"0": "1", "1": "0"}', r"class '0' with the number 1 or the class '1' with the number 0"),
    "aliases.yaml": ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", r"aliases"),
    "digits.csv": (
        "0,1\n1,0\n",
        r"line 1: cannot tell whether it is the class '1' with the number 0 or the class '0,1'",
    ),
    "numbers.txt": ("0\n1\n2\n", r"numbers and no names"),
    "one_line.txt": ("run,jump,walk\n", r"line 1: cannot tell whether 'run,jump,walk' is one class or 3"),
    "two_columns.csv": ("run,fast\njump,up\n", r"line 1: cannot tell whether 'run,fast' is one class or 2"),
    "three_columns.csv": ("0,jump,up\n1,run,fast\n", r"the class 'jump,up' with the number 0 or the class '0,jump,up'"),
    "three_cells.csv": ("id,name\n0,jump,up\n1,run,fast\n", r"line 2: 3 columns where the first line names 2"),
    "codes.txt": ("n01440764 tench\nn01443537 goldfish\n", r"the class 'tench' with the number 01440764 or"),
    "two_tabs.tsv": ("run\tfast\njump\tup\n", r"is one class or 2"),
    "points.txt": ("3 point shot\n2 handed dunk\n", r"the class 'point shot' with the number 3 or the class '3 point"),
    "legs.txt": ("1 leg stand\n2 leg stand\n", r"the class 'leg stand' with the number 1 or the class '1 leg stand'"),
    "behind.txt": ("run 0\njump 1\n", r"the class 'run' with the number 0 or the class 'run 0'"),
    "counts.csv": ("run,312\njump,97\n", r"the class 'run' with the number 312 or the class 'run,312'"),
    "one_missing.csv": ("0,run\n1,jump\nwalk\n", r"the class 'run' with the number 0 or the class '0,run'"),
    "one_missing.txt": ("1 run\n2 jump\nwalk\n", r"the class 'run' with the number 1 or the class '1 run'"),
    "counts.txt": ("run 312\njump 97\n", r"the class 'run' with the number 312 or the class 'run 312'"),
    "pointer.csv": ("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", r"git lfs pull"),
    "page.csv": ("\n<!DOCTYPE html>\n<html>\n", r"a web page"),
    "list.txt": ("v/a.mp4 0\nv/b.mp4 1\n", r"line 1: 'v/a.mp4' is a video; expected class names"),
    "open.csv": ('id,name\n0,"run\n1,jump\n', r"line 2: a quotation mark is not closed"),
    "list.csv": ("v/a.mp4,0\nv/b.mp4,1\n", r"line 1: 'v/a.mp4' is a video; expected class names, not a list of videos"),
    "wheel.txt": (b"PK\x03\x04 and more", r"a zip archive"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    content, message = REFUSED[file]
    with pytest.raises(InputError, match=message) as caught:
        load_class_names(write(tmp_path, file, content))
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_number_is_known(tmp_path: Path) -> None:
    for content, first in (("1 run\n2 jump\n", 1), ("id,name\n0,run\n1,jump\n", 0), ("run\njump\n", 0)):
        assert numbered_classes(write(tmp_path, "c.txt", content)) == (first, ["run", "jump"])


def test_a_written_table_is_read_again(tmp_path: Path) -> None:
    names = ['say "hi", loudly', "3 point shot", "# 1", "press # key", "a;b\tc", "id", "- x", "[y]"]
    assert parse_class_file(write(tmp_path, "c.csv", class_table(names))) == names


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in (
        (tmp_path / "pipe.txt", "it is a pipe"),
        (tmp_path, "cannot be read"),
        ("/dev/zero", "device"),
    ):
        with pytest.raises(InputError, match=message):
            load_class_names(path)


def calls(function, *arguments) -> int:
    """Calls of Python and C functions, a measure of work that is the same in every run."""
    count = 0

    def add(*_) -> None:
        nonlocal count
        count += 1

    sys.setprofile(add)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "line", ["{n},class {n}\n", "class {n}\n", "class {n},{n}\n", "- class {n}\n", '"class\n{n}"\n']
)
def test_work_grows_as_the_file(tmp_path: Path, line: str) -> None:
    once, twice = (
        write(tmp_path, f"{count}.txt", "".join(line.format(n=n) for n in range(count))) for count in (200, 400)
    )
    parse_class_file(once)
    assert calls(parse_class_file, twice) < 2.1 * calls(parse_class_file, once)
