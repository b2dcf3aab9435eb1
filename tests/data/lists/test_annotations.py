"""Annotation formats: each published format is recognised and read, and each bad line named."""

import json
from pathlib import Path

import pytest

from m2clip.data.lists.annotations import FORMATS, detect_format, load_annotations
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def pairs(annotations) -> list[tuple[str, int]]:
    root = annotations.source if annotations.source.is_dir() else annotations.source.parent
    return [(item.path.relative_to(root).as_posix(), item.label) for item in annotations.items]


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_list(tmp_path: Path, separator: str) -> None:
    file = write(tmp_path / "train.txt", f"a/x (1)!#.mp4{separator}0\r\n\r\nb 2.mp4{separator}1\r\n")
    annotations = load_annotations(file, class_names=["run", "jump"])
    assert annotations.format == "list"
    assert pairs(annotations) == [("a/x (1)!#.mp4", 0), ("b 2.mp4", 1)]
    assert annotations.class_names == ["run", "jump"]


def test_relative_paths_start_at_root_and_absolute_paths_stay(tmp_path: Path) -> None:
    file = write(tmp_path / "lists/train.txt", "a.mp4 0\n/data/b.mp4 0\n")
    items = load_annotations(file, root=tmp_path / "videos").items
    assert [item.path for item in items] == [tmp_path / "videos/a.mp4", Path("/data/b.mp4")]


def test_class_names_from_a_file(tmp_path: Path) -> None:
    classes = write(tmp_path / "classes.csv", "id,name\n0,run\n1,jump\n")
    annotations = load_annotations(write(tmp_path / "a.txt", "a.mp4 1\n"), class_names=classes)
    assert annotations.class_names == ["run", "jump"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4\n", r"train\.txt, line 2: no label"),
        ("a.mp4 0\n\nb.mp4 two\n", r"train\.txt, line 3: no label"),
        ("a.mp4 2\n", r"train\.txt, line 1: label 2 is out of range; there are 2 classes, 0 to 1"),
        ("a.mp4 -1\n", r"train\.txt, line 1: label -1 is negative"),
        ("a.mp4 0\nb.mp4 1\na.mp4 0\n", r"line 3: duplicate path .*a\.mp4, already at .*train\.txt, line 1"),
        ("\n", r"lists no videos"),
    ],
)
def test_bad_list_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_annotations(write(tmp_path / "train.txt", text), class_names=["run", "jump"])
    assert "\n" not in str(caught.value)


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"a.mp4 0\ncaf\xe9.mp4 1\n")
    with pytest.raises(InputError, match=r"train\.txt, line 2: not valid UTF-8"):
        load_annotations(tmp_path / "train.txt")


def test_missing_list_and_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt: no such annotation file"):
        load_annotations(tmp_path / "none.txt")
    with pytest.raises(InputError, match="unknown annotation format 'lst'; choose from auto, list"):
        load_annotations(write(tmp_path / "a.txt", "a.mp4 0\n"), format="lst")


KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    '"petting animal (not cat)",-abc_123,3,13,train,0\n'
    "abseiling,x,150,160,train,0\n"
    "abseiling,y,0,10,validate,0\n"
)


def test_kinetics_flat(tmp_path: Path) -> None:
    annotations = load_annotations(write(tmp_path / "k.csv", KINETICS))
    assert annotations.format == "kinetics"
    assert annotations.class_names == ["abseiling", "petting animal (not cat)"]
    assert pairs(annotations) == [
        ("-abc_123_000003_000013.mp4", 1),
        ("x_000150_000160.mp4", 0),
        ("y_000000_000010.mp4", 0),
    ]


def test_kinetics_class_folders_split_and_built_in_names(tmp_path: Path) -> None:
    (tmp_path / "petting_animal_(not_cat)").mkdir()
    (tmp_path / "abseiling").mkdir()
    annotations = load_annotations(write(tmp_path / "k.csv", KINETICS), class_names="k400", split="train")
    names = load_class_names("k400")
    assert pairs(annotations) == [
        ("petting_animal_(not_cat)/-abc_123_000003_000013.mp4", names.index("petting animal (not cat)")),
        ("abseiling/x_000150_000160.mp4", names.index("abseiling")),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",x,1,2,train,0", "line 2: no label"),
        ("abseiling,x,1,train,0", "line 2: 5 columns where the header has 6"),
        ("abseiling,x,one,2,train,0", "line 2: time_start and time_end"),
        ("flying,x,1,2,train,0", "line 2: class 'flying' is not among the 400 class names"),
    ],
)
def test_bad_kinetics_line(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path / "k.csv", KINETICS.splitlines()[0] + f"\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_annotations(file, class_names="k400")


SSV2 = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": "42", "label": "pushing a cup", "template": "Pushing [something] from left to right"},
]


def test_ssv2(tmp_path: Path) -> None:
    file = write(tmp_path / "train.json", json.dumps(SSV2))
    with pytest.raises(InputError, match="no labels.json beside it"):
        load_annotations(file)
    write(tmp_path / "labels.json", json.dumps({"Pushing something from left to right": "0", "Holding something": "1"}))
    annotations = load_annotations(file)
    assert annotations.format == "ssv2"
    assert pairs(annotations) == [("78687.webm", 1), ("42.webm", 0)]
    built_in = load_annotations(file, class_names="ssv2")
    assert built_in.class_names[built_in.items[1].label] == "Pushing something from left to right"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "1"}, "entry 1: no label"),
        ({"template": "Holding [something]"}, "entry 1: a video needs an `id`"),
        ({"id": "1", "template": "Eating"}, "entry 1: class 'Eating' is not among the 174"),
    ],
)
def test_bad_ssv2_entry(tmp_path: Path, entry: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_annotations(write(tmp_path / "test.json", json.dumps([entry])), class_names="ssv2")


def ucf_folder(tmp_path: Path) -> Path:
    write(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\r\n2 Archery\r\n")
    write(tmp_path / "trainlist01.txt", "Archery/v_Archery_g08_c01.avi 2\nApplyEyeMakeup/v_x_g08_c01.avi 1\n")
    write(tmp_path / "testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    return tmp_path


def test_ucf101(tmp_path: Path) -> None:
    folder = ucf_folder(tmp_path)
    train = load_annotations(folder / "trainlist01.txt")
    assert train.format == "ucf101"
    assert train.class_names == ["ApplyEyeMakeup", "Archery"]
    assert pairs(train) == [("Archery/v_Archery_g08_c01.avi", 1), ("ApplyEyeMakeup/v_x_g08_c01.avi", 0)]
    assert load_annotations(folder, split="train1").items == train.items
    assert pairs(load_annotations(folder, split="test1")) == [("Archery/v_Archery_g01_c01.avi", 1)]
    by_name = load_annotations(folder / "trainlist01.txt", class_names="ucf101")
    assert by_name.class_names[by_name.items[0].label] == "Archery"


def test_bad_ucf101(tmp_path: Path) -> None:
    folder = ucf_folder(tmp_path)
    with pytest.raises(InputError, match="split must be train1"):
        load_annotations(folder)
    with pytest.raises(InputError, match=r"testlist03\.txt: no such file"):
        load_annotations(folder, split="test3")
    write(folder / "trainlist02.txt", "Archery/v.avi 2\nArchery/w.avi 1\n")
    with pytest.raises(InputError, match=r"trainlist02\.txt, line 2: label 1 is not 'Archery'"):
        load_annotations(folder, split="train2")
    write(folder / "trainlist03.txt", "Archery/v.avi\n")
    with pytest.raises(InputError, match=r"trainlist03\.txt, line 1: no label"):
        load_annotations(folder, split="train3")
    (folder / "classInd.txt").unlink()
    with pytest.raises(InputError, match="no classInd.txt beside it"):
        load_annotations(folder / "testlist01.txt")


def hmdb_folder(tmp_path: Path) -> Path:
    write(tmp_path / "brush_hair_test_split1.txt", "April_(09)_#1!_brush_hair.avi 1 \nb.avi 2 \nc.avi 0 \n")
    write(tmp_path / "wave_test_split1.txt", "a b.avi 2\nd.avi 1\n")
    write(tmp_path / "wave_test_split2.txt", "d.avi 2\n")
    return tmp_path


def test_hmdb51(tmp_path: Path) -> None:
    folder = hmdb_folder(tmp_path)
    train = load_annotations(folder, split="train1")
    assert train.format == "hmdb51"
    assert train.class_names == ["brush hair", "wave"]
    assert pairs(train) == [("brush_hair/April_(09)_#1!_brush_hair.avi", 0), ("wave/d.avi", 1)]
    assert pairs(load_annotations(folder, split="test1")) == [("brush_hair/b.avi", 0), ("wave/a b.avi", 1)]
    assert pairs(load_annotations(folder, split="test2")) == [("wave/d.avi", 0)]
    one = load_annotations(folder / "wave_test_split1.txt", split="test", class_names="hmdb51", root=tmp_path / "v")
    assert [(item.path, item.label) for item in one.items] == [(tmp_path / "v/wave/a b.avi", 50)]


def test_hmdb51_with_all_classes_uses_the_built_in_order(tmp_path: Path) -> None:
    for name in load_class_names("hmdb51"):
        write(tmp_path / f"{name.replace(' ', '_')}_test_split3.txt", "x.avi 2\n")
    assert load_annotations(tmp_path, split="test3").class_names == load_class_names("hmdb51")


def test_bad_hmdb51(tmp_path: Path) -> None:
    folder = hmdb_folder(tmp_path)
    with pytest.raises(InputError, match=r"holds no files \*_test_split3"):
        load_annotations(folder, split="train3")
    with pytest.raises(InputError, match="split must be 'train' or 'test'"):
        load_annotations(folder / "wave_test_split1.txt")
    write(folder / "wave_test_split1.txt", "a.avi 2\nb.avi\n")
    with pytest.raises(InputError, match=r"wave_test_split1\.txt, line 2: expected `name.avi FLAG`"):
        load_annotations(folder, split="train1")


def test_frames(tmp_path: Path) -> None:
    annotations = load_annotations(write(tmp_path / "f.txt", "videos/a 1 120 3\nvideos/b 8 0\n"))
    assert annotations.format == "frames"
    first = annotations.items[0]
    assert (first.path, first.num_frames, first.label) == (tmp_path / "videos/a 1", 120, 3)
    with pytest.raises(InputError, match="line 2: no label"):
        load_annotations(write(tmp_path / "g.txt", "a 120 3\nb 3\n"))
    with pytest.raises(
        InputError, match=r"2 of 3 videos have 0 frames, first .*b \(line 2\); delete their lines, or use"
    ):
        load_annotations(write(tmp_path / "h.txt", "a 5 3\nb 0 3\nc 0 1\n"))


def test_episodes(tmp_path: Path) -> None:
    file = write(
        tmp_path / "fsar.txt",
        "train0//videos/brush_hair/x.avi\ntrain1//videos/wave/y.avi\ntest0//videos/run/z.avi\n",
    )
    train = load_annotations(file, split="train", root=tmp_path)
    assert train.format == "episodes"
    assert pairs(train) == [("videos/brush_hair/x.avi", 0), ("videos/wave/y.avi", 1)]
    assert train.class_names == ["brush hair", "wave"]
    test = load_annotations(file, split="test")
    assert (pairs(test), test.class_names) == ([("videos/run/z.avi", 0)], ["run"])
    with pytest.raises(InputError, match="holds the splits test, train; choose one"):
        load_annotations(file)


def test_episodes_of_bare_ids(tmp_path: Path) -> None:
    annotations = load_annotations(write(tmp_path / "train.txt", "train1/78687\ntrain0/9\n"))
    assert pairs(annotations) == [("78687.webm", 1), ("9.webm", 0)]
    assert annotations.class_names is None
    # The names of such a list come from a class file, in the order of the ids of this split.
    names = write(tmp_path / "names.txt", "Pouring [something]\nPulling [something]\n")
    named = load_annotations(tmp_path / "train.txt", class_names=names)
    assert [named.class_names[item.label] for item in named.items] == ["Pulling [something]", "Pouring [something]"]
    # Some collections hold the same videos as mp4.
    write(tmp_path / "mp4" / "78687.mp4", "")
    again = load_annotations(tmp_path / "train.txt", root=tmp_path / "mp4")
    assert [item.path.name for item in again.items] == ["78687.mp4", "9.mp4"]


def test_episodes_as_published(tmp_path: Path) -> None:
    lines = [
        "val0//train_256/air_drumming/a b.mp4",
        "val11//train_256/zumba/c.mp4",
        "val0//train_256/air_drumming/d.mp4",
    ]
    annotations = load_annotations(write(tmp_path / "val_few_shot.txt", "\n".join(lines)), root=tmp_path / "k100")
    assert annotations.format == "episodes"
    assert annotations.items[0].path == tmp_path / "k100" / "train_256" / "air_drumming" / "a b.mp4"
    # Eleven classes are missing: the folders alone would number them wrongly.
    assert [item.label for item in annotations.items] == [0, 11, 0] and annotations.class_names is None
    with pytest.raises(InputError, match="line 2: label 11 is out of range; there are 2 classes"):
        load_annotations(tmp_path / "val_few_shot.txt", class_names=["air drumming", "zumba"])
    with pytest.raises(InputError, match="line 2: no label"):
        load_annotations(write(tmp_path / "bad.txt", "train0/1\ntrain/2\n"))


def test_format_can_be_overridden(tmp_path: Path) -> None:
    file = write(tmp_path / "list.txt", "clips 12 3\n")
    assert detect_format(file) == "frames"
    assert pairs(load_annotations(file, format="list")) == [("clips 12", 3)]
    parts = {"activitynet", "epic_verbs", "epic_nouns"}
    whole = {"list", "kinetics", "ssv2", "ucf101", "hmdb51", "frames", "episodes", "folder", "shards"}
    assert set(FORMATS) == whole | parts


def test_split_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the list format has no splits"):
        load_annotations(write(tmp_path / "a.txt", "a.mp4 0\n"), split="train")


def test_select_classes_relabels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "a.mp4 0\nb.mp4 1\nc.mp4 2\n")
    annotations = load_annotations(file, class_names=["run", "jump", "wave hand"])
    chosen = annotations.select_classes(["wave_hand", "run"])
    assert pairs(chosen) == [("a.mp4", 1), ("c.mp4", 0)]
    assert chosen.class_names == ["wave_hand", "run"]
    with pytest.raises(InputError, match="class 'fly' is not among its 3 classes"):
        annotations.select_classes(["fly"])


def test_few_shot_draws_the_same_videos_of_every_class(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "".join(f"v{i}.mp4 {i % 3}\n" for i in range(60)))
    annotations = load_annotations(file, class_names=["a", "b", "c"])
    chosen = annotations.few_shot(4, seed=1)
    assert [sum(item.label == label for item in chosen.items) for label in range(3)] == [4, 4, 4]
    assert chosen.items == annotations.few_shot(4, seed=1).items
    assert chosen.items != annotations.few_shot(4, seed=2).items
    with pytest.raises(InputError, match="class 0 has 20 videos, 21 shots"):
        annotations.few_shot(21, seed=0)
