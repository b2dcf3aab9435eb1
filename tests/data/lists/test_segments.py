"""Lists of parts of videos: columns of seconds in every form of a list, ActivityNet's json, EPIC-Kitchens' csv."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2clip.at_scale.videos import read_videos
from m2clip.data.episodes import EpisodeShape, draw_episodes, load_episodes
from m2clip.data.lists.annotations import Annotations, VideoItem, list_hash, load_annotations
from m2clip.data.lists.splits import frequent_half, write_list
from m2clip.data.segment import Segment, parse_seconds
from m2clip.errors import InputError
from tests.data.lists.test_plain import write

EXPECTED = [("a b.mp4", 1, (0.5, 2.0)), ("a b.mp4", 0, (2.0, 63.25)), ("c.mp4", 1, (3.0, 4.5))]

READ = {
    "table.csv": "path,start,end,label\na b.mp4,0.5,2,1\na b.mp4,2,63.25,0\nc.mp4,3,4.5,1\n",
    "order.csv": "label;t_end;video;t_start\n1;2;a b.mp4;0.5\n0;63.25;a b.mp4;2\n1;4.5;c.mp4;3\n",
    "clock.tsv": "video\tstart_time\tstop_time\tclass\na b.mp4\t0:00.5\t0:02\tb\n"
    "a b.mp4\t00:00:02.00\t00:01:03.25\ta\nc.mp4\t0:03\t0:04.5\tb\n",
    "more.csv": "path,fps,start_frame,end_frame,start,end,duration,label\n"
    "a b.mp4,25,12,50,0.5,2,99,1\na b.mp4,25,50,1581,2,63.25,99,0\nc.mp4,25,75,112,3,4.5,9,1\n",
    "bare.csv": "a b.mp4,0.5,2,1\na b.mp4,2.0,63.25,0\nc.mp4,3,4.5,1\n",
    "bare.txt": "a b.mp4 0.5 2 1\na b.mp4 2.0 63.25 0\nc.mp4 3 4.5 1\n",
    "names.csv": "a b.mp4,0.5,2,b\na b.mp4,2.0,63.25,a\nc.mp4,3,4.5,b\n",
    "names.txt": "a b.mp4 0.5 2 b\na b.mp4 2.0 63.25 a\nc.mp4 3 4.5 b\n",
    "fields.jsonl": '{"path": "a b.mp4", "start": 0.5, "end": 2, "label": 1}\n'
    '{"path": "a b.mp4", "start": 2, "end": 63.25, "label": 0}\n'
    '{"path": "c.mp4", "start": 3, "end": 4.5, "label": 1}\n',
    "segments.json": '[{"video": "a b.mp4", "segment": [0.5, 2], "label": "b"},\n'
    '{"video": "a b.mp4", "segment": [2, 63.25], "label": "a"}, {"video": "c.mp4", "segment": [3, 4.5], "label": "b"}]',
}


def parts(annotations: Annotations) -> list[tuple[str, int, tuple[float, float] | None]]:
    return [(item.path.name, item.label, item.segment and tuple(item.segment)) for item in annotations.items]


@pytest.mark.parametrize("file", READ)
def test_every_form_of_a_list_has_parts(tmp_path: Path, file: str) -> None:
    found = load_annotations(write(tmp_path / file, READ[file]), class_names=["a", "b"])
    assert parts(found) == EXPECTED and found.items[0].name.endswith("a b.mp4 0.5-2 s")


def test_times_as_people_write_them() -> None:
    read = {"1.5": 1.5, ".5": 0.5, "1e1": 10.0, "-1": -1.0, "1:02": 62.0, "01:00:00.25": 3600.25, "75:00": 4500.0}
    assert {text: parse_seconds(text) for text in read} == read
    for text in ("", "one", "1:75", "1,5", "1:2:3:4", "1 s"):
        assert parse_seconds(text) is None, text


REFUSED = {
    "empty.csv": ("path,start,end,label\na.mp4,0,1,1\nb.mp4,2,2,1\n", "line 3: the segment 2-2 s is empty"),
    "backwards.csv": ("path,start,end,label\na.mp4,3,2,1\n", "line 2: the segment 3-2 s is empty"),
    "negative.csv": ("path,start,end,label\na.mp4,-1,2,1\n", "line 2: the segment -1-2 s starts before the video"),
    "nan.csv": ("path,start,end,label\na.mp4,nan,2,1\n", "line 2: the segment nan-2 s has a time that is no number"),
    "inf.csv": ("path,start,end,label\na.mp4,0,inf,1\n", "line 2: the segment 0-inf s has a time that is no number"),
    "cell.csv": (
        "path,start,end,label\na.mp4,,2,1\n",
        "line 2: the start of a part is a number of seconds, .* nothing",
    ),
    "word.csv": ("path,start,end,label\na.mp4,0,later,1\n", "line 2: the end of a part is a number .* not 'later'"),
    "half.csv": ("path,end,label\na.mp4,2,1\n", "line 1: a column 'end' without one for the start"),
    "twice.csv": ("path,start,begin,end,label\na.mp4,1,1,2,1\n", "columns 'start' and 'begin' may both be the start"),
    "copy.csv": (
        "path,start,end,label\na.mp4,1,2,1\na.mp4,1.0,2,0\n",
        "line 3: duplicate segment 1-2 s of .*a.mp4, already at .*line 2",
    ),
    "mixed.txt": ("a.mp4 1.5 2.5 1\nb.mp4 0\n", "line 2: no start and end of a part, as on line 1"),
    "whole.txt": ("a.mp4 1 2 1\n", "line 1: columns '1', '2', '1' after 'a.mp4'.*path,start,end,label"),
    "blanks.txt": ("path start end label\na.mp4 1 2 1\n", "line 1: columns in blanks .* need commas"),
    "pair.jsonl": ('{"path": "a.mp4", "segment": [1], "label": 1}\n', r"line 1: segment is '\[1\]', not a start"),
    "both.jsonl": ('{"path": "a", "segment": [1, 2], "end": 2, "label": 1}\n', "line 1: has a segment, and a start or"),
    "nan.jsonl": ('{"path": "a", "segment": [NaN, 2], "label": 1}\n', "line 1: the segment nan-2 s has a time"),
    "no_label.csv": ("path,start,end\na.mp4,1,2\n", "line 2: no label for 'a.mp4'"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_is_refused_in_one_line(tmp_path: Path, file: str) -> None:
    content, message = REFUSED[file]
    with pytest.raises(InputError, match=message) as caught:
        load_annotations(write(tmp_path / file, content))
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_folders_of_images_have_no_seconds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="line 2: 'a' is a folder: parts in seconds are of video files alone"):
        load_annotations(write(tmp_path / "l.csv", "path,start,end,label\na,1,2,1\n"))


ENTRY = {"subset": "training", "annotations": [{"segment": [1, 2.5], "label": "Long jump"}]}
DATABASE = {
    "version": "1.3",
    "taxonomy": [],
    "database": {
        "x": {**ENTRY, "duration": 99.5, "url": "https://"},
        "y": {
            "subset": "validation",
            "annotations": [{"segment": [0, 4], "label": "Cricket"}, {"segment": ["3", 9], "label": "Long jump"}],
        },
        "z": {"subset": "testing", "annotations": []},
    },
}


def test_activitynet(tmp_path: Path) -> None:
    write(tmp_path / "v_y.mkv", b"")
    path = write(tmp_path / "activity_net.v1-3.min.json", json.dumps(DATABASE, indent=1))
    found = load_annotations(path, split="validation")
    assert (found.format, found.class_names) == ("activitynet", ["Cricket", "Long jump"])
    assert parts(found) == [("v_y.mkv", 0, (0.0, 4.0)), ("v_y.mkv", 1, (3.0, 9.0))]
    assert parts(load_annotations(path, split="training")) == [("x.mp4", 1, (1.0, 2.5))]
    # What stands behind "database" alone, as others write it.
    alone = load_annotations(write(tmp_path / "alone.json", json.dumps({"x": ENTRY})))
    assert (alone.format, alone.class_names, parts(alone)) == (
        "activitynet",
        ["Long jump"],
        [("x.mp4", 0, (1.0, 2.5))],
    )


@pytest.mark.parametrize(
    ("value", "split", "said"),
    [
        (DATABASE, None, "holds the splits training, validation; choose one with split"),
        (DATABASE, "test", "holds the splits testing, training, validation, not 'test'"),
        (DATABASE, "testing", "lists no videos of split 'testing'"),
        ({"database": [1]}, None, "expected"),
        ({"database": {"x": 1}}, None, 'expected videos below "database"'),
        ({"x": {"annotations": [{"segment": [1], "label": "a"}]}}, None, "entry 'x': an annotation without"),
        ({"x": {"annotations": [{"segment": [1, 2]}]}}, None, "entry 'x': an annotation without"),
        ({"x": {"annotations": ["a"]}}, None, "entry 'x': an annotation without"),
        ({"x": {"annotations": [{"segment": [2, 1], "label": "a"}]}}, None, "segment 1 of 'x': the segment 2-1 s is"),
        ({"x": {"annotations": [{"segment": [0, None], "label": "a"}]}}, None, "entry 'x': the end of a part is"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, value: object, split: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_annotations(write(tmp_path / "a.json", json.dumps(value)), split=split)
    assert "\n" not in str(caught.value)


EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,1,['door'],[1]\n"
    'P01_01_1,P01,P01_01,00:00:02.629,01:00:04.37,01:00:06.17,262,370,"turn on, light",turn-on,1,light,0,'
    "\"['light', 'a']\",\"[0, 4]\"\n"
)


def test_epic_kitchens(tmp_path: Path) -> None:
    write(tmp_path / "P01/videos/P01_01.MP4", b"")
    path = write(tmp_path / "EPIC_100_train.csv", EPIC)
    verbs = load_annotations(path, format="epic_verbs")
    assert verbs.class_names is None
    assert parts(verbs) == [("P01_01.MP4", 3, (0.14, 3.37)), ("P01_01.MP4", 1, (3604.37, 3606.17))]
    assert verbs.items[0].path == tmp_path / "P01/videos/P01_01.MP4"
    write(
        tmp_path / "EPIC_100_noun_classes.csv",
        "id,key,instances,category\n0,light,\"['light']\",a\n1,door,['door'],b\n",
    )
    nouns = load_annotations(path, format="epic_nouns")
    assert nouns.class_names == ["light", "door"] and [item.label for item in nouns.items] == [1, 0]
    with pytest.raises(InputError, match="choose the format epic_verbs or epic_nouns"):
        load_annotations(path)
    with pytest.raises(InputError, match="line 1: expected the columns of EPIC-Kitchens, found no verb_class"):
        load_annotations(write(tmp_path / "test.csv", EPIC.replace("verb_class", "verbs")), format="epic_verbs")
    with pytest.raises(InputError, match="line 2: the start of a part is a number of seconds, or hh:mm:ss, not 'x'"):
        load_annotations(write(tmp_path / "bad.csv", EPIC.replace("00:00:00.14", "x")), format="epic_verbs")


def items(*segments: tuple[float, float] | None) -> list[VideoItem]:
    return [
        VideoItem(Path("/v/a.mp4"), place % 2, segment=None if one is None else Segment(*one))
        for place, one in enumerate(segments)
    ]


def test_parts_of_a_file_are_different_items() -> None:
    hashes = {list_hash(items(one)) for one in (None, (0, 1), (0, 2), (1, 2))}
    assert len(hashes) == 4
    # Whole videos keep the hash that they had before lists knew parts.
    assert list_hash(items(None)) == "54c50980e701be94"


def test_episodes_have_one_part_of_a_video(tmp_path: Path) -> None:
    # Three videos with two parts of each class: a query is never of a video that the support of its class has.
    text = "".join(f"{v}.mp4,{n},{n + 0.5},{'xyz'[n % 3]}\n" for v in "abc" for n in range(6))
    found = load_annotations(write(tmp_path / "l.csv", f"path,start,end,label\n{text}"))
    episodes = draw_episodes(found, EpisodeShape(3, 1, 2), 40)
    drawn = torch.cat([episodes.support, episodes.query], -1)
    assert all(len({found.items[number].path for number in of_class}) == 3 for of_class in drawn.flatten(0, 1).tolist())
    assert set(drawn.flatten().tolist()) == set(range(18))  # each part is drawn
    with pytest.raises(InputError, match=r"fewer than the 4 videos of an episode \(1 support, 3 query\): 'x' \(3\)"):
        draw_episodes(found, EpisodeShape(3, 1, 3), 1)
    episodes.save(tmp_path / "episodes.jsonl")
    assert torch.equal(load_episodes(tmp_path / "episodes.jsonl", found).query, episodes.query)
    parts = found.items[0], found.items[3]
    both = replace(episodes, query=episodes.query.clone())
    both.support[0, both.classes[0].tolist().index(0)] = 0
    both.query[0, both.classes[0].tolist().index(0)] = torch.tensor([3, 6])
    assert parts[0].path == parts[1].path and parts[0].label == parts[1].label == 0
    both.save(tmp_path / "leak.jsonl")
    with pytest.raises(InputError, match="line 2: two parts of one video are of class 0"):
        load_episodes(tmp_path / "leak.jsonl", found)
    moved = write(tmp_path / "moved.csv", f"path,start,end,label\n{text.replace('0.5', '0.25')}")
    with pytest.raises(InputError, match="these episodes are of a list"):
        load_episodes(tmp_path / "episodes.jsonl", load_annotations(moved))


def test_protocols_take_parts(tmp_path: Path) -> None:
    text = "".join(f"a.mp4,{n},{n + 0.5},{'xyz'[n % 3]}\n" for n in range(18))
    found = load_annotations(write(tmp_path / "l.csv", f"path,start,end,label\n{text}"))
    few = found.few_shot(2, seed=0)
    assert len(few) == 6 and len(set(few.items)) == 6
    base, novel = frequent_half(found)
    halves = [found.select_classes(base), found.select_classes(novel)]
    assert sorted(item.segment for half in halves for item in half.items) == [item.segment for item in found.items]
    written = write_list(few, tmp_path / "few.txt")
    again = load_annotations(written.path, format=written.format, class_names=written.classes)
    assert [(item.path, item.segment, item.label) for item in again.items] == [
        (item.path.absolute(), item.segment, item.label) for item in few.items
    ]
    assert list_hash(again.items) == list_hash(few.items)
    mixed = Annotations((*found.items, VideoItem(Path("b.mp4"), 0)), found.class_names, "list", Path("l"))
    with pytest.raises(InputError, match="both whole videos and parts of videos"):
        write_list(mixed, tmp_path / "mixed.txt")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.csv", "video,start,end\na.mp4,1,2\na.mp4,2,3\n"),
        ("l.jsonl", '{"path": "a.mp4", "segment": [1, 2]}\n{"path": "a.mp4", "segment": [2, 3]}\n'),
        ("labelled.csv", "video,start,end,label\na.mp4,1,2,jump\na.mp4,2,3,run\n"),
    ],
)
def test_parts_without_labels(tmp_path: Path, file: str, text: str) -> None:
    found = read_videos(write(tmp_path / file, text))
    assert [item.segment for item in found] == [(1, 2), (2, 3)]
    with pytest.raises(InputError, match="duplicate segment 2-3 s"):
        read_videos(write(tmp_path / file, text.replace("1, 2", "2, 3").replace("1,2", "2,3")))
