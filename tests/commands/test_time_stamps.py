"""`m2clip predict --window`: the files it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import m2clip
from m2clip.data.built_in.motion import CLASSES, render_clip
from m2clip.data.built_in.rendered_set import write_clip
from m2clip.files.kept_work import read_record
from tests.commands.calls import call, one_line

SHAPES = ("a ring", "a cross")
MODEL = ("--clip", "tiny", "--labels", *SHAPES)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a ring and three of a cross, at 12 frames per second."""
    shows = {one.name: one for one in CLASSES}
    parts = [("a ring moving left", 48), ("a cross growing", 36)]
    frames = [np.resize(render_clip(shows[name], 1), (count, 64, 64, 3)) for name, count in parts]
    path = tmp_path_factory.mktemp("videos") / "film.mp4"
    write_clip(path, np.concatenate(frames))
    return path


def test_segments_are_found_and_written(capfd: pytest.CaptureFixture[str], video: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"new/film.{name}" for name in ("csv", "srt", "png")}
    words = ("predict", video, *MODEL, "--window", 1, "--csv", files["csv"], "--srt", files["srt"])
    code, out, _ = call(capfd, *words, "--timeline", files["png"], "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["path"] == str(video) and found["duration"] == pytest.approx(7.0)
    first, second = found["segments"]
    assert (first["name"], second["name"]) == SHAPES
    assert first["start"] == 0 and second["end"] == pytest.approx(7.0)
    assert abs(first["end"] - 4) <= 0.25 and abs(second["start"] - 4) <= 0.25
    lines = files["csv"].read_text().splitlines()
    assert lines[0] == "path,start,end,class,score" and len(lines) == 3
    assert files["srt"].read_text().startswith("1\n00:00:00,000 --> 00:00:0")
    with Image.open(files["png"]) as picture:
        assert picture.width > 1000
    code, out, _ = call(capfd, *words)
    assert code == 0 and "0:00.0" in out and "0:07.0" in out


def test_earlier_results_are_replaced_and_nothing_else(
    capfd: pytest.CaptureFixture[str], video: Path, tmp_path: Path
) -> None:
    words = ["predict", video, *MODEL, "--window", 2]
    files = {"--csv": tmp_path / "a.csv", "--srt": tmp_path / "a.srt", "--timeline": tmp_path / "a.png"}
    given = [word for pair in files.items() for word in pair]
    for _ in range(2):
        assert call(capfd, *words, *given)[0] == 0
    assert call(capfd, *words, *given, "--min-length", 60)[0] == 0  # without a segment
    assert call(capfd, *words, *given)[0] == 0
    for option, path in files.items():
        path.write_text("mine\n")
        assert f"give another {option}" in one_line(call(capfd, *words, option, path))
        assert path.read_text() == "mine\n"


def test_a_threshold_that_nothing_reaches(capfd: pytest.CaptureFixture[str], video: Path) -> None:
    code, out, _ = call(capfd, "predict", video, *MODEL, "--window", 1, "--min-length", 60)
    assert code == 0 and "no segment" in out


def test_several_videos(capfd: pytest.CaptureFixture[str], video: Path, tmp_path: Path) -> None:
    words = ("predict", video, video, tmp_path / "absent.mp4", *MODEL, "--window", 2, "--step", 1)
    code, out, err = call(capfd, *words, "--json", "--csv", tmp_path / "a.csv", "--srt", tmp_path / "a.srt")
    assert code == 2 and "1 of 3 videos failed" in err
    found = json.loads(out)
    assert len(found[0]["segments"]) == len(found[1]["segments"]) == 2 and "no such" in found[2]["error"]
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 5
    assert (tmp_path / "a_1.srt").is_file() and (tmp_path / "a_2.srt").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--step", 1), "--step is for windows of a long video: give --window"),
        (("--min-length", 1), "--min-length is for windows"),
        (("--csv", "a.csv"), "--csv is for windows"),
        (("--window", 0), "'0' is not a time in seconds above 0"),
        (("--window", "nan"), "'nan' is not a time"),
        (("--window", 1, "--step", 2), "the step must be above 0 s and at most the window's 1 s"),
        (("--window", 1, "--threshold", 1.5), "'1.5' is not a number above 0 and at most 1"),
        (("--window", 1, "--low", 0.9), "low 0.9 and high 0.5"),
        (("--window", 1, "--clips", 4), "--clips says nothing with --window"),
        (("--window", 1, "--filmstrip", "a.png"), "--filmstrip says nothing with --window"),
        (("--window", 1, "--timeline", "a.jpg"), "ends with .png"),
        (("--window", 1, "--srt", "a.txt"), "ends with .srt"),
    ],
)
def test_impossible_options_are_one_line(
    capfd: pytest.CaptureFixture[str], video: Path, words: tuple, said: str
) -> None:
    assert said in one_line(call(capfd, "predict", video, *MODEL, *words))


@pytest.fixture(scope="module")
def scored(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MSTA, which is frozen CLIP before it is trained, and the true segments of the video and of another."""
    folder = tmp_path_factory.mktemp("scored")
    model = m2clip.create_model("msta", m2clip.load_clip("tiny"), class_names=SHAPES, num_frames=8)
    m2clip.save_adapters(model, folder / "run")
    (folder / "v_film.mp4").symlink_to(video)
    parts = [{"segment": [0, 4], "label": "a ring"}, {"segment": [4, 7], "label": "a cross"}]
    lost = [{"segment": [0, 4], "label": "a ring"}]
    database = {"film": {"subset": "val", "annotations": parts}, "lost": {"subset": "test", "annotations": lost}}
    (folder / "true.json").write_text(json.dumps({"database": database}))
    return folder


def test_segments_are_scored(capfd: pytest.CaptureFixture[str], scored: Path, tmp_path: Path) -> None:
    words = ("eval", scored / "run", "--segments", scored / "true.json", "--window", 1, "--output", tmp_path)
    code, out, _ = call(capfd, *words, "--split", "val")
    assert code == 0 and "100.00" in out and "2 segments of 2 classes in 1 videos" in out
    # Of two rings one is in a video that is not there: half of them are found.
    code, out, _ = call(capfd, *words, "--json", "--with-frozen")
    assert code == 0
    found = json.loads(out)
    assert [one["name"] for one in found["results"]] == ["msta", "frozen CLIP"]
    assert found["results"][0]["by_class"] == {"a ring": [0.5] * 5, "a cross": [1.0] * 5}
    assert found["results"][0]["mean_ap"] == pytest.approx(0.75)
    assert len(found["failures"]) == 1 and "lost" in found["failures"][0]
    assert read_record(tmp_path / "segments_true.json") == found
    assert (tmp_path / "segments_true_val.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give --list, or --segments"),
        (("--segments", "true.json"), "--segments needs --window"),
        (("--list", "a.txt", "--window", 1), "--window is for --segments"),
        (("--segments", "absent.json", "--window", 1), "No such file"),
        (("--segments", "run/adapter_config.json", "--window", 1), "run/adapter_config.json: JSON of no known list"),
        (("--segments", "true.json", "--window", 1, "--split", "nothing"), "holds the splits test, val, not 'nothing'"),
        (("--segments", "true.json", "--window", 1, "--on-error", "raise"), "lost"),
        (("--segments", "true.json", "--window", 1, "--split", "test"), "none of the 1 videos could be read"),
    ],
)
def test_impossible_evaluations_are_one_line(
    capfd: pytest.CaptureFixture[str], scored: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, said: str
) -> None:
    monkeypatch.chdir(scored)
    assert said in one_line(call(capfd, "eval", "run", *words))


def test_labels_that_no_run_knows(capfd: pytest.CaptureFixture[str], scored: Path, tmp_path: Path) -> None:
    value = {"film": {"annotations": [{"segment": [0, 1], "label": "a dog"}, {"segment": [0, 1], "label": "a cat"}]}}
    (tmp_path / "other.json").write_text(json.dumps(value))
    words = ("eval", scored / "run", "--segments", tmp_path / "other.json", "--window", 1)
    assert "entry 'film': class 'a dog' is not among the 2" in one_line(call(capfd, *words))


def test_nothing_is_written_over_the_video(capfd: pytest.CaptureFixture[str], video: Path) -> None:
    assert "read from" in one_line(call(capfd, "predict", video, *MODEL, "--window", 1, "--csv", video))
