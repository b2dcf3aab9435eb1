"""What `m2clip check` finds, what it leaves in the clean list, and that a killed call resumes where it stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2clip.cli import main
from m2clip.data.check import files as check_files
from m2clip.data.check.files import Depth
from m2clip.data.check.lists import check_list, default_output
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.video import isolated
from m2clip.data.video.isolated import DecoderLimits
from m2clip.errors import InputError, Notice
from m2clip.files.folders import locked
from tests.data.video.test_limits import truncated
from tests.data.video.test_readers import BAD_FILES, image_folder
from tests.data.video_files import write_video

NAMES = ["jump", "run", "walk"]
# How often a call is killed before one is let through.
KILLS = int(os.environ.get("M2CLIP_KILLS", "1"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for number in range(4):
        write_video(folder / f"{number}.mp4", num_frames=10 + number, size=(64, 48))
    write_video(folder / "cut.mkv", options={"crf": "20", "bf": "0"})
    truncated(folder / "cut.mkv", 0.6)
    return folder


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    """A folder of four good videos in three class folders."""
    folder = tmp_path / "videos"
    for name, number in (("jump", 0), ("run", 1), ("run", 2), ("walk", 3)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(originals / f"{number}.mp4", folder / name / f"{number}.mp4")
    return folder


def write_list(videos: Path, *lines: str) -> Path:
    path = videos.parent / "train.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


GOOD = ("videos/jump/0.mp4 0", "videos/run/1.mp4 1", "videos/run/2.mp4 1", "videos/walk/3.mp4 2")


def found(report) -> list[tuple[str, str]]:
    return [(problem.kind, Path(problem.path).name) for problem in report.problems]


def test_a_list_without_problems(videos: Path) -> None:
    path = write_list(videos, *GOOD)
    report = check_list(path, class_names=NAMES)
    assert (report.videos, report.clean, report.problems, report.looked_at) == (4, 4, [], 4)
    again = load_annotations(report.clean_list, class_names=report.class_file)
    original = load_annotations(path, class_names=NAMES)
    assert [(item.path.resolve(), item.label) for item in again.items] == [
        (item.path.resolve(), item.label) for item in original.items
    ]
    assert again.class_names == NAMES
    assert Path(report.clean_list).read_text().startswith("../videos/jump/0.mp4 0\n")


def test_every_kind_of_problem(videos: Path, originals: Path) -> None:
    shutil.copy(originals / "cut.mkv", videos / "run" / "cut.mkv")
    (videos / "run" / "page.mp4").write_bytes(b"<html>404</html>")
    shutil.copy(videos / "run" / "1.mp4", videos / "run" / "copy.mp4")
    shutil.copy(videos / "jump" / "0.mp4", videos / "other.mp4")
    path = write_list(
        videos,
        *GOOD,
        "videos/run/cut.mkv 1",
        "videos/run/page.mp4 1",
        "videos/run/none.mp4 1",
        "videos/run/copy.mp4 1",
        "videos/other.mp4 2",
        "videos/walk/3.mp4 2",
        "videos/run/2.mp4 7",
    )
    before = path.read_bytes()
    report = check_list(path, class_names=NAMES)
    problems = {(kind, name) for kind, name in found(report)}
    assert problems == {
        ("damaged", "cut.mkv"),
        ("unreadable", "page.mp4"),
        ("missing", "none.mp4"),
        ("duplicate", "copy.mp4"),
        ("duplicate", "3.mp4"),
        ("duplicate", "other.mp4"),
        ("mislabelled", "other.mp4"),
        ("mislabelled", "0.mp4"),
        ("mislabelled", "2.mp4"),
        ("duplicate", "2.mp4"),
    }
    assert report.counts == {
        "missing": 1,
        "unreadable": 1,
        "damaged": 1,
        "segment": 0,
        "duplicate": 4,
        "mislabelled": 4,
    }
    by_name = {(problem.kind, Path(problem.path).name): problem for problem in report.problems}
    assert by_name["duplicate", "copy.mp4"].message == (
        f"the same content as {videos}/run/1.mp4, at {path}, line 2".replace(str(videos), str(videos))
    )
    assert by_name["unreadable", "page.mp4"].where == f"{path}, line 6"
    kept = [(item.path.name, item.label) for item in load_annotations(report.clean_list).items]
    assert kept == [("1.mp4", 1), ("3.mp4", 2)]
    assert path.read_bytes() == before
    saved = json.loads((default_output(path) / "report.json").read_text())
    assert saved["counts"] == report.counts
    assert len(saved["problems"]) == len(report.problems)


def test_a_folder_that_is_named_as_another_class(videos: Path) -> None:
    path = write_list(videos, *GOOD[:3], "videos/walk/3.mp4 0")
    with pytest.raises(InputError, match="1 of 4 videos lie in the folder of another class"):
        load_annotations(path, class_names=NAMES)
    report = check_list(path, class_names=NAMES, depth=Depth("none"))
    assert found(report) == [("mislabelled", "3.mp4")]
    assert "lies in the folder of class 'walk', labelled 'jump'" in report.problems[0].message


def test_files_that_differ_only_in_the_middle_are_no_copies(tmp_path: Path) -> None:
    content = bytearray(os.urandom(400_000))
    (tmp_path / "a.mp4").write_bytes(content)
    (tmp_path / "c.mp4").write_bytes(content)
    content[100_000] ^= 1
    (tmp_path / "b.mp4").write_bytes(content)
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 0\nc.mp4 0\n")
    report = check_list(tmp_path / "train.txt", depth=Depth("none"))
    assert found(report) == [("duplicate", "c.mp4")]


@pytest.mark.parametrize(
    ("decode", "problems"),
    [("none", []), ("count", []), ("sampled", []), ("full", [("unreadable", "noise.mp4")])],
)
def test_how_closely_files_are_looked_at(tmp_path: Path, decode: str, problems: list[tuple[str, str]]) -> None:
    path = write_video(tmp_path / "noise.mp4", gop=1, options={"crf": "20", "bf": "0"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    # One frame of 40 is lost; it is none of the eight in the middle of each segment.
    size = int.from_bytes(data[start : start + 4], "big")
    frame = start + 4 + size
    while data[frame + 4] & 31 != 5:
        frame += 4 + int.from_bytes(data[frame : frame + 4], "big")
    length = int.from_bytes(data[frame : frame + 4], "big")
    data[frame + 4 : frame + 4 + length] = bytes(length)
    path.write_bytes(data)
    (tmp_path / "train.txt").write_text("noise.mp4 0\n")
    assert found(check_list(tmp_path / "train.txt", depth=Depth(decode, reader="pyav"))) == problems


@pytest.mark.parametrize("name", ["empty", "zeros", "text", "truncated", "audio_only"])
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    BAD_FILES[name][0](tmp_path / "bad.mp4")
    (tmp_path / "train.txt").write_text("bad.mp4 0\n")
    report = check_list(tmp_path / "train.txt")
    assert found(report) == [("unreadable", "bad.mp4")]
    assert (report.clean, report.clean_list) == (0, None)


def test_a_video_that_crashes_the_decoder_costs_only_itself(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_CHILD", "from tests.data.video.hostile_child import main")
    for name in ("segfault.bad", "read_hang.bad"):
        (videos / name).write_bytes(name.encode())
    path = write_list(videos, "videos/segfault.bad 0", GOOD[0], "videos/read_hang.bad 1", *GOOD[1:])
    report = check_list(path, depth=Depth(limits=DecoderLimits(seconds=2)))
    assert found(report) == [("unreadable", "segfault.bad"), ("unreadable", "read_hang.bad")]
    assert report.clean == 4


def test_folders_of_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "whole", 10)
    image_folder(tmp_path / "short", 8)
    (tmp_path / "short" / "img_00002.jpg").unlink()
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    path = tmp_path / "train.txt"
    path.write_text("whole 10 0\nshort 8 1\ncopy 10 0\n")
    report = check_list(path, depth=Depth(num_frames=2))
    assert found(report) == [("damaged", "short"), ("duplicate", "copy")]
    (item,) = load_annotations(report.clean_list).items
    assert (item.path.name, item.num_frames, item.label) == ("whole", 10, 0)


def test_class_folders_and_names_with_commas(originals: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("a, b", 'say "c"')):
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(originals / f"{number}.mp4", tmp_path / "set" / name / "x 1.mp4")
    report = check_list(tmp_path / "set")
    assert report.problems == []
    again = load_annotations(report.clean_list, class_names=report.class_file)
    assert again.class_names == ["a, b", 'say "c"']
    assert [item.label for item in again.items] == [0, 1]


def test_a_second_call_looks_only_at_what_has_changed(videos: Path, originals: Path) -> None:
    path = write_list(videos, *GOOD)
    assert check_list(path).looked_at == 4
    (videos / "run" / "1.mp4").write_bytes(b"<html>")
    second = check_list(path)
    assert (second.looked_at, found(second)) == (1, [("unreadable", "1.mp4")])
    third = check_list(path)
    assert (third.looked_at, found(third)) == (0, [("unreadable", "1.mp4")])
    # What was found out in another depth says nothing about this one.
    assert check_list(path, depth=Depth("count")).looked_at == 4


def test_a_record_that_was_cut_short_is_taken_up(videos: Path) -> None:
    path = write_list(videos, *GOOD)
    check_list(path)
    record = default_output(path) / "files.jsonl"
    data = record.read_bytes()
    record.write_bytes(data[:-30])
    assert check_list(path).looked_at == 1
    assert check_list(path).looked_at == 0
    record.write_bytes(b"\xff\xfe{]\n[1, 2]\n{}\n" + data)
    assert check_list(path).looked_at == 0


def test_two_checks_at_once(videos: Path) -> None:
    path = write_list(videos, *GOOD)
    with locked(default_output(path), "test"), pytest.raises(InputError, match="another check is writing"):
        check_list(path)
    assert check_list(path).looked_at == 4


def test_killed_in_the_middle_and_started_again(originals: Path, tmp_path: Path) -> None:
    count = 30 + 30 * KILLS
    for number in range(count):
        data = (originals / f"{number % 4}.mp4").read_bytes()
        # A box that players pass over makes each content its own.
        (tmp_path / f"{number}.mp4").write_bytes(data + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big"))
    path = tmp_path / "train.txt"
    path.write_text("".join(f"{number}.mp4 0\n" for number in range(count)))
    output = tmp_path / "checked"
    command = [sys.executable, "-m", "m2clip.cli", "check", str(path), "--output", str(output), "--json"]
    record, kept = output / "files.jsonl", 0
    for _ in range(KILLS):
        wanted = kept + random.Random(kept).randint(1, 20)
        process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL)
        while not record.exists() or record.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = record.read_bytes().count(b"\n")
        assert kept < count
        assert not (output / "clean.txt").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["looked_at"] == count - kept
    assert (report["clean"], report["problems"]) == (count, [])
    assert len(load_annotations(report["clean_list"])) == count


def test_the_input_is_never_replaced(videos: Path) -> None:
    path = write_list(videos, *GOOD)
    report = check_list(path, class_names=NAMES)
    with pytest.raises(InputError, match="would be replaced by what is written"):
        check_list(report.clean_list, Path(report.clean_list).parent)
    os.link(path, videos / "clean.txt")
    with pytest.raises(InputError, match="would be replaced by what is written"):
        check_list(path, videos)


@pytest.mark.parametrize("name", ["clean.txt", "classes.csv", "report.json", "files.jsonl"])
def test_files_of_others_are_never_replaced(videos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / name
    mine.write_text('{"name": "mine"}\n')
    with pytest.raises(InputError, match=rf"{name} is of no check, and would be replaced; give another --output$"):
        check_list(write_list(videos, *GOOD), mine.parent, class_names=NAMES)
    assert list(mine.parent.iterdir()) == [mine] and mine.read_text() == '{"name": "mine"}\n'
    # A check that was killed as it began.
    (mine.parent / "files.jsonl").write_text('{"ke')
    assert check_list(write_list(videos, *GOOD), mine.parent, class_names=NAMES).clean == 4


def test_a_class_name_that_no_file_can_hold_is_named(originals: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("jump", "run\nfast")):
        (tmp_path / "videos" / name).mkdir(parents=True)
        shutil.copy(originals / f"{number}.mp4", tmp_path / "videos" / name / "0.mp4")
    with pytest.raises(InputError, match=r"the class name 'run\\nfast' cannot be put into a class file"):
        check_list(tmp_path / "videos")


def test_rows_of_no_frames_are_reported(tmp_path: Path) -> None:
    image_folder(tmp_path / "whole", 3)
    image_folder(tmp_path / "other", 5)
    (tmp_path / "train.txt").write_text("whole 3 0\nother 0 1\n")
    report = check_list(tmp_path / "train.txt", depth=Depth("none"))
    assert found(report) == [("damaged", "other")] and report.problems[0].message == "0 frames, says the list"
    assert report.clean == 1


def test_an_output_that_cannot_be_written(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in ("/proc/none.check", tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(InputError, match="cannot be written: .*; give another folder with --output"):
            check_list(write_list(videos, *GOOD), output)


def test_what_is_left_out_of_a_folder_is_in_the_report(originals: Path, tmp_path: Path) -> None:
    for name in ("a/0.mp4", "b/1.mp4", "b/._1.mp4"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(originals / name[-5:], tmp_path / "data" / name)
    with pytest.warns(Notice, match="hidden or system"):
        report = check_list(tmp_path / "data", depth=Depth("none"))
    (found,) = json.loads((tmp_path / "data.check" / "report.json").read_text())["left_out"]
    assert report.left_out == [found] and found["counts"] == {"hidden or system files": 1}


def test_bad_arguments(videos: Path) -> None:
    path = write_list(videos, *GOOD)
    with pytest.raises(InputError, match="unknown kind of problem 'ugly'"):
        check_list(path, keep=["ugly"])
    with pytest.raises(InputError, match="decode must be one of none, count, sampled, full"):
        Depth("some")
    with pytest.raises(InputError, match="unknown video reader 'opencv'"):
        check_list(path, depth=Depth(reader="opencv"))


def test_the_work_is_taken_in_small_portions() -> None:
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    results = check_files.in_threads(lambda number: number * number, numbers(), workers=2)
    first = next(results)
    assert first[1] == first[0] ** 2
    assert len(taken) <= 9
    assert sorted([first, *results]) == [(number, number * number) for number in range(100)]


def test_command(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "run" / "bad.mp4").write_bytes(b"<html>")
    path = write_list(videos, *GOOD, "videos/run/bad.mp4 1")
    with pytest.raises(SystemExit) as end:
        main(["check", str(path), "--decode", "count"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "unreadable" in printed
    assert f"unreadable: {videos}/run/bad.mp4 ({path}, line 5): a web page saved as a video" in printed
    assert "4 of 5 videos are good" in printed
    assert main(["check", str(path), "--decode", "count", "--json", "--keep", "unreadable"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clean"], report["counts"]["unreadable"]) == (5, 1)
    assert main(["check", str(write_list(videos, *GOOD)), "--decode", "count"]) == 0
    twice = write_list(videos, *GOOD, GOOD[0])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["check", str(twice), "--decode", "count", "--keep", "mislabelled"])
    assert "meant so: --keep mislabelled duplicate\n" in capsys.readouterr().out
    assert main(["check", str(twice), "--decode", "count", "--keep", "mislabelled", "duplicate"]) == 0
    capsys.readouterr()
    assert main(["check", str(videos / "none.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
