"""Lists as people write them: headers, class names, separators, quotes, comments, JSON; what else there is, refused."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from m2clip.data.lists.annotations import Annotations, load_annotations
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from tests.data.lists.test_class_files import calls

NAMES = ["jump", "run, fast", "walk"]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(annotations: Annotations, folder: Path) -> list[tuple[str, int]]:
    return [(item.path.relative_to(folder).as_posix(), item.label) for item in annotations.items]


READ = {
    "blanks.txt": "v/a.mp4 0\nv/b c.mp4 1\n",
    "excel.csv": "sep=;\npath;label;;\nv/a.mp4;0;;\n;;;\nv/b c.mp4;1;;\n",
    "empty_cells.csv": "v/a.mp4,0,\n,,\nv/b c.mp4,1,\n",
    "commas.csv": "v/a.mp4,0\nv/b c.mp4, 1\n",
    "semicolons.csv": "v/a.mp4;0\nv/b c.mp4;1\n",
    "tabs.tsv": "v/a.mp4\t0\nv/b c.mp4\t1\n",
    "mixed.txt": "v/a.mp4 0\nv/b c.mp4,1\n",
    "quoted.csv": '"v/a.mp4","0"\n"v/b c.mp4","1"\n',
    "quoted_blanks.txt": '"v/a.mp4" 0\n"v/b c.mp4" 1\n',
    "crlf.txt": "v/a.mp4 0\r\nv/b c.mp4 1\r\n",
    "cr.txt": "v/a.mp4 0\rv/b c.mp4 1\r",
    "bom.txt": "\ufeffv/a.mp4 0\nv/b c.mp4 1\n",
    "comments.txt": "# made by hand\nv/a.mp4 0  # good\n#v/x.mp4 0\nv/b c.mp4 1\n",
    "header.csv": "path,label\nv/a.mp4,0\nv/b c.mp4,1\n",
    "header_blanks.txt": "path label\nv/a.mp4 0\nv/b c.mp4 1\n",
    "header_after_comment.csv": "# by hand\nvideo_path,label\nv/a.mp4,0\nv/b c.mp4,1\n",
    "header_quoted.csv": '"Video Path";"Label"\n"v/a.mp4";"0"\n"v/b c.mp4";"1"\n',
    "label_first.csv": "class,filename\n0,v/a.mp4\n1,v/b c.mp4\n",
    "pandas.csv": ",path,label\n0,v/a.mp4,0\n1,v/b c.mp4,1\n",
    "clip_name.csv": 'clip_name,clip_path,label\na,v/a.mp4,jump\nb,v/b c.mp4,"run, fast"\n',
    "counts_blanks.txt": "path num_frames label\nv/a.mp4 30 0\nv/b c.mp4 31 1\n",
    "quotes_in_comments.csv": '# the "best, list\n# by, "me\nv/a.mp4,0\nv/b c.mp4,"1"\n',
    "counts.csv": "path,num_frames,label\nv/a.mp4,30,0\nv/b c.mp4,31,1\n",
    "counts.txt": "v/a.mp4 30 0\nv/b c.mp4 31 1\n",
    "names.csv": "v/a.mp4,jump\nv/b c.mp4,run, fast\n",
    "names_bare.csv": "path,label\nv/a.mp4,Jump\nv/b c.mp4,run, fast\n",
    "names_blanks.txt": "v/a.mp4 jump\nv/b c.mp4 run, fast\n",
    "names_quoted.csv": 'v/a.mp4,"jump"\nv/b c.mp4,"run,\nfast"\n',
    "names_comments.csv": 'v/a.mp4,jump # good\nv/b c.mp4,"run, fast"\n',
    "python.txt": "'v/a.mp4', 'jump'\n'v/b c.mp4', 'run, fast'\n",
    "video_name.csv": 'video_name,tag\nv/a.mp4,jump\nv/b c.mp4,"run, fast"\n',
    "template.csv": 'video_id;template\nv/a.mp4;jump\nv/b c.mp4;"run, fast"\n',
    "names_tabs.tsv": "file\tclass_name\nv/a.mp4\tjump\nv/b c.mp4\trun, fast\n",
    "lines.jsonl": '{"path": "v/a.mp4", "label": 0}\n{"label": 1, "path": "v/b c.mp4"}\n',
    "lines.json": '{"video": "v/a.mp4", "label": "jump"}\n\n{"video": "v/b c.mp4", "label": "run, fast"}\n',
    "list.json": json.dumps([{"file": "v/a.mp4", "class": 0}, {"file": "v/b c.mp4", "class": 1}], indent=1),
    "testlist07.txt": "v/a.mp4 0\nv/b c.mp4 1\n",
    "trainlist07.txt": "path,label\nv/a.mp4,0\nv/b c.mp4,1\n",
    "x_test_split1.txt": "v/a.mp4 0\nv/b c.mp4 1\n",
    "text.json": "v/a.mp4 0\nv/b c.mp4 1\n",
}


@pytest.mark.parametrize("file", READ)
def test_is_read(tmp_path: Path, file: str) -> None:
    path = write(tmp_path / file, READ[file])
    found = load_annotations(path, class_names=NAMES)
    assert pairs(found, tmp_path) == [("v/a.mp4", 0), ("v/b c.mp4", 1)]
    assert (found.format, found.class_names) == ("list", NAMES)
    if "jump" in READ[file].lower() and '"run' in READ[file]:
        # Without class names, the list's own make the classes.
        assert load_annotations(path).class_names == NAMES[:2]


PATHS = {
    "a, b.mp4": "{} 0",
    "x, y/b.mp4": "{},0",
    "[2011] clip.mp4": "{} 0",
    "{set} 1.mp4": "{} 0",
    "#1 fail.mp4": "{} 0",
    '5" plate.mp4': "{} 0",
    "line\nbreak.mp4": '"{}" 0',
    "my.mp4 files/clip.avi": "{} jump",
    "a  b.MP4": "{}\t0",
    "v_x.y": "{} 0",
    "folder of frames": "{} 0",
}


@pytest.mark.parametrize("name", PATHS)
def test_names_of_files(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"")
    path = write(tmp_path / "list.txt", "".join(f"{PATHS[name].format(one)}\n" for one in (name, "other.mp4")))
    found = load_annotations(path, class_names=None if "jump" in PATHS[name] else NAMES)
    assert pairs(found, tmp_path) == [(name, 0), ("other.mp4", 0)]


def test_a_line_break_in_a_table(tmp_path: Path) -> None:
    found = load_annotations(write(tmp_path / "l.csv", 'path,label\n"a\nb.mp4","run\nfast"\n'))
    assert pairs(found, tmp_path) == [("a\nb.mp4", 0)] and found.class_names == ["run fast"]


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "a.mp4,step 10\nb.mp4,step 2\nc.mp4,Begin\nd.mp4,step 2\n")
    found = load_annotations(path)
    assert found.class_names == ["Begin", "step 2", "step 10"]
    assert [item.label for item in found.items] == [2, 1, 0, 1]


def test_split_column(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "path,label,split\na.mp4,jump,train\nb.mp4,walk,test\n")
    assert pairs(load_annotations(path, split="test", class_names=NAMES), tmp_path) == [("b.mp4", 2)]
    with pytest.raises(InputError, match="holds the splits test, train; choose one"):
        load_annotations(path)
    with pytest.raises(InputError, match="holds the splits test, train, not 'val'"):
        load_annotations(path, split="val")


REFUSED = {
    "columns.csv": ("a.mp4,0,10,3\n", r"line 1: columns '0', '10', '3' after 'a.mp4'"),
    "columns.txt": ("a.mp4 0 10 3\n", r"line 1: columns '0', '10', '3' after 'a.mp4'"),
    "columns_two.csv": ("a.mp4,10,3\n", r"line 1: columns '10', '3' after 'a.mp4'"),
    "columns_names.csv": ("a.mp4,0,10,jump\n", r"line 1: columns '0', '10', 'jump'"),
    "columns_folder.csv": ("a,0,10,3\n", r"line 1: columns '0', '10', '3' after 'a'"),
    "empty_column.csv": ("a.mp4,,1\n", r"line 1: columns '', '1' after"),
    "header.csv": ("path,camera,label\na.mp4,0,3\n", r"line 1: cannot use the columns 'camera'"),
    "header.jsonl": (
        '{"path": "a.mp4", "start": 0, "label": 1}\n',
        r"line 1: a column 'start' without one for the end",
    ),
    "two_labels.csv": ("path,label,class\na.mp4,0,1\n", r"columns 'label' and 'class' may both be the label"),
    "again.csv": ("path,label\na.mp4,jump\npath,label\n", r"line 3: names the columns again"),
    "empty_label.csv": ("a.mp4,_\n", r"line 1: no label"),
    "short.csv": ("path,label\na.mp4\n", r"line 2: 1 columns where the first line names 2"),
    "long.csv": ("path,label\na.mp4,1,2\n", r"line 2: 3 columns where the first line names 2"),
    "no_label.csv": ("path,label\na.mp4,\n", r"line 2: no label"),
    "unknown_header.csv": ("foo,bar\na.mp4,0\nb.mp4,1\n", r"line 1: 'foo', 'bar' name no video, nor columns"),
    "path_alone.csv": ("path,name of it\nv1,jump\n", r"line 1: 'path', 'name of it' name no video, nor columns"),
    "numbers.txt": ("a.mp4 1,2\n", r"line 1: columns '1', '2' after 'a.mp4'"),
    "negative.txt": ("a -1 1\n", r"line 1: columns '-1', '1' after 'a'"),
    "label_first.txt": ("0 a.mp4\n1 b.mp4\n", r"line 1: no label"),
    "paths.txt": ("a.mp4\nb c.mp4\n", r"line 1: no label"),
    "mixed.txt": ("a.mp4 jump\nb.mp4 2\nc.mp4 run\n", r"line 2: no label; expected a class name as on line 1"),
    "float.csv": ("path,label\na.mp4,1.0\n", r"line 2: label '1.0' is no whole number"),
    "comma.csv": ("path;label\na.mp4;1,0\n", r"line 2: label '1,0' is no whole number"),
    "arrow.txt": ("a.mp4 -> 1\n", r"line 1: label '-> 1' is no whole number"),
    "no_frames.txt": ("a.mp4 1 3\nb.mp4 0 2\n", r"1 of 2 videos have 0 frames, first .*b.mp4 \(line 2\)"),
    "nan.csv": ("path,label\na.mp4,jump\nb.mp4,nan\n", r"line 3: label 'nan' is no whole number"),
    "spelling.csv": ("a.mp4,Jump\nb.mp4,jump\n", r"line 2: class 'jump' is 'Jump' on line 1"),
    "counts.txt": ("a.mp4 120 jump\nb.mp4 80 run\n", r"'120 jump' is a class, or 120 frames of the class 'jump'"),
    "open.csv": ('a.mp4,0\n"b.mp4,1\nc.mp4,2\n', r"line 2: a quotation mark is not closed"),
    "after.csv": ('"a.mp4"x,0,"b" c,1\n', r"line 1: "),
    "object.json": ('{"videos": ["a.mp4"]}', r"expected \{\"path\""),
    "other_fields.jsonl": (
        '{"path": "a", "label": 1}\n{"path": "b"}\n',
        r"line 2: other fields than those of the first",
    ),
    "broken.jsonl": ('{"path": "a", "label": 1}\n{"path": "b"\n', r"line 2.*not valid JSON"),
    "lists.jsonl": ('{"path": "a", "label": [1]}\n', r"line 1: label is '\[1\]', neither text nor a number"),
    "activitynet.json": ('{"version": "1.3", "database": {}}', r'expected videos below "database"'),
    "big.jsonl": ('{"path": "a", "label": 99999999999}\n', r"line 1: label is no whole number of up to nine digits"),
    "utf16.txt": ("a.mp4 0\n".encode("utf-16"), r"text in UTF-16 or UTF-32; save the file as UTF-8"),
    "video.txt": (b"\0\0\0\x20ftypisom" + bytes(99), r"a video \(MP4 or MOV\), not a text file"),
    "video.avi": (b"RIFF\x10\0\0\0AVI LIST", r"a video \(AVI\), not a text file"),
    "picture.png": (b"\x89PNG\r\n\x1a\n", r"a picture \(PNG\)"),
    "array.npy": (b"\x93NUMPY\x01\0", r"a NumPy array"),
    "unknown.bin": (bytes(range(256)), r"not valid UTF-8 and not a text file"),
    "list.txt.gz": (b"\x1f\x8b\x08\0", r"a compressed file"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    content, message = REFUSED[file]
    with pytest.raises(InputError, match=message) as caught:
        load_annotations(write(tmp_path / file, content))
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_a_wheel_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m2clip.whl", "w") as wheel:
        wheel.writestr("m2clip/__init__.py", "")
    with pytest.raises(InputError, match="a zip archive"):
        load_annotations(tmp_path / "m2clip.whl")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in ((tmp_path / "pipe.txt", "it is a pipe"), ("/dev/zero", "it is a device")):
        with pytest.raises(InputError, match=message):
            load_annotations(path)


def test_accents_are_those_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = "caf\u00e9.mp4", "\u00e9t\u00e9"
    decomposed = [unicodedata.normalize("NFD", part) for part in (folder, name)]
    write(tmp_path / decomposed[0] / decomposed[1], b"")
    for written, label in ((f"{folder}/{name}", "\u00e9t\u00e9"), ("/".join(decomposed), decomposed[0])):
        path = write(tmp_path / "list.csv", f"{written},{label}\n")
        found = load_annotations(path, class_names=["hiver", unicodedata.normalize("NFD", "\u00c9t\u00e9")])
        assert pairs(found, tmp_path) == [("/".join(decomposed), 1)]
        assert load_annotations(path).class_names == [folder]
        monkeypatch.chdir(tmp_path)
        assert str(load_annotations("list.csv").items[0].path) == "/".join(decomposed)
    both = write(tmp_path / "both.csv", f"{folder}/{name},0\n{decomposed[0]}/{decomposed[1]},0\n")
    with pytest.raises(InputError, match="duplicate path"):
        load_annotations(both)


def test_what_lies_on_the_disk_decides_about_names_without_suffix(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "v/one 30 0\nv/two 40 1\nv/gone 50 2\n")
    assert [item.num_frames for item in load_annotations(path).items] == [30, 40, 50]
    write(tmp_path / "v/one.mp4", b"")
    write(tmp_path / "v/one.txt", b"")
    write(tmp_path / "v/two.WebM", b"")
    videos = load_annotations(path).items
    assert [(item.path.name, item.num_frames) for item in videos] == [
        ("one.mp4", None),
        ("two.WebM", None),
        ("gone", None),
    ]
    (tmp_path / "v" / "one").mkdir()
    mixed = load_annotations(path).items
    assert [(item.path.name, item.num_frames) for item in mixed] == [("one", 30), ("two.WebM", None), ("gone", 50)]
    write(tmp_path / "v/two.avi", b"")
    with pytest.raises(InputError, match=r"line 2: .*two may be two.WebM or two.avi; write the suffix"):
        load_annotations(path)
    for text in ("path,num_frames,label\nv/one,30,0\n", "path frames label\nv/one 30 0\n"):
        assert load_annotations(write(tmp_path / "counted.csv", text)).items == mixed[:1]
    named = write(tmp_path / "named.csv", "id,label\nv/one,0\nv/gone,1\n")
    assert [item.path.name for item in load_annotations(named).items] == ["one", "gone"]
    parts = write(tmp_path / "parts.txt", "v/one 0 10 3\n")
    with pytest.raises(InputError, match=r"line 1: columns '0', '10', '3' after 'v/one'"):
        load_annotations(parts)


def test_paths_of_windows(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "v\\jump\\a.mp4,jump\nv\\walk\\b,walk\nx\\y.mp4,walk\n")
    write(tmp_path / "v/walk/b.avi", b"")
    write(tmp_path / "x\\y.mp4", b"")
    expected = [("v/jump/a.mp4", 0), ("v/walk/b.avi", 2), ("x\\y.mp4", 2)]
    assert pairs(load_annotations(path, class_names=NAMES), tmp_path) == expected
    path.write_text("v\\jump\\a.mp4 2\nv\\walk\\b 0\n")
    with pytest.raises(InputError, match="2 of 2 videos lie in the folder of another class"):
        load_annotations(path, class_names=NAMES)


def test_labels_count_as_the_class_file_does(tmp_path: Path) -> None:
    classes = write(tmp_path / "classInd.txt", "1 jump\n2 run\n3 walk\n")
    for text, labels in (("a.mp4 1\nb.mp4 3\n", [0, 2]), ("a.mp4 0\nb.mp4 2\n", [0, 2])):
        found = load_annotations(write(tmp_path / "l.txt", text), class_names=classes)
        assert [item.label for item in found.items] == labels
    with pytest.raises(InputError, match="1 to 2, may count from 0, or from 1 as the class file does"):
        load_annotations(write(tmp_path / "l.txt", "a.mp4 1\nb.mp4 2\n"), class_names=classes)
    with pytest.raises(
        InputError, match="label 1 is the class number 1 or the class named '1', which has the number 0"
    ):
        load_annotations(write(tmp_path / "l.txt", "a.mp4 1\n"), class_names=["1", "2"])


OFFICIAL = {
    "kinetics400/validate.csv": "label,youtube_id,time_start,time_end,split,is_cc\njump,abc,1,11,validate,0\n",
    "deepmind.csv": "youtube_id,label,time_start,time_end,split\nabc,jump,1.0,11.0,validate\n",
    "quoted.csv": '"label","youtube_id","time_start","time_end","split"\n"jump","abc","1","11","val"\n',
    "no_split.csv": "label;youtube_id;time_start;time_end\njump;abc;1;11\n",
    "train.json": json.dumps({"abc": {"annotations": {"label": "jump", "segment": [1.0, 11.0]}, "subset": "train"}}),
}


@pytest.mark.parametrize("file", OFFICIAL)
def test_kinetics(tmp_path: Path, file: str) -> None:
    found = load_annotations(write(tmp_path / file, OFFICIAL[file]), root=tmp_path)
    assert (found.format, found.class_names) == ("kinetics", ["jump"])
    assert pairs(found, tmp_path) == [("abc_000001_000011.mp4", 0)]
    write(tmp_path / "abc_000001_000011.mkv", b"")
    assert load_annotations(tmp_path / file, root=tmp_path).items[0].path.suffix == ".mkv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("youtube_id,time_start,time_end,split\nabc,1,11,test\n", "found no label"),
        (json.dumps({"abc": {"subset": "test", "url": "https://", "duration": 10}}), "entry 'abc': no label"),
        (json.dumps({"a": {"annotations": {"label": "jump", "segment": 3}}}), "entry 'a': expected a segment"),
    ],
)
def test_bad_kinetics(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_annotations(write(tmp_path / "test.txt", text))


def test_diving48(tmp_path: Path) -> None:
    dives = [{"vid_name": "x_1", "label": 26, "start_frame": 0, "end_frame": 74}]
    write(tmp_path / "x_1.mp4", b"")
    found = load_annotations(write(tmp_path / "Diving48_V2_train.json", json.dumps(dives)))
    assert pairs(found, tmp_path) == [("x_1.mp4", 26)] and found.items[0].num_frames is None
    dives[0]["start_frame"] = 5
    with pytest.raises(InputError, match="entry 1: a part of a video that starts at frame 5"):
        load_annotations(write(tmp_path / "Diving48_V2_train.json", json.dumps(dives)))


def test_ssv2_answers_and_mp4(tmp_path: Path) -> None:
    write(tmp_path / "1420.mp4", b"")
    path = write(tmp_path / "test-answers.csv", "1420;Holding [something]\n7;Holding [something]\n")
    found = load_annotations(path, class_names="ssv2")
    assert [item.path.name for item in found.items] == ["1420.mp4", "7"]
    entries = [{"id": "1420", "template": "Holding [something]"}]
    found = load_annotations(write(tmp_path / "validation.txt", json.dumps(entries)), class_names="ssv2")
    assert (found.format, found.items[0].path.name) == ("ssv2", "1420.mp4")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("l.txt", "v{n}.mp4 {n}\n"),
        ("l.txt", "v{n} 12 {n}\n"),
        ("l.csv", "v{n}.mp4,class {n}\n"),
        ("l.csv", '"v{n}\n.mp4";"class {n}"\n'),
        ("l.jsonl", '{{"path": "v{n}.mp4", "label": {n}}}\n'),
        ("l.txt", "train{n}//c{n}/v{n}\n"),
        ("l.txt", "\u00e9{n}/\u00e9{n} 3 {n}\n"),
    ],
)
def test_work_grows_as_the_list(tmp_path: Path, name: str, line: str) -> None:
    def read(count: int) -> int:
        path = write(tmp_path / name, "".join(line.format(n=n) for n in range(count)))
        return calls(load_annotations, path)

    read(10)
    assert read(400) < 2.1 * read(200)


def test_work_grows_as_the_classes() -> None:
    def select(count: int) -> int:
        names = [f"class {n}" for n in range(count)]
        return calls(Annotations((), names, "list", Path("l.txt")).select_classes, names)

    assert select(400) < 2.1 * select(200)


@pytest.mark.parametrize("run", [" ", " ,", ".mp4,"])
def test_long_runs_are_read_or_refused(tmp_path: Path, run: str) -> None:
    """An expression that tries every way to part such a line would outlast the time limit of a test."""
    for text in (f"x{30_000 * run}y", f"a.mp4{30_000 * run}1"):
        for read in (load_annotations, load_class_names):
            try:
                read(write(tmp_path / "l.txt", f"{text}\n"))
            except InputError as error:
                assert len(str(error)) < 2000
