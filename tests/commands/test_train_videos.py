"""`m2clip train VIDEOS`: from a folder of videos to a run that predicts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from m2clip.cli import build_parser
from m2clip.commands.shared.overrides import join_overrides, take_word
from m2clip.config import load_config
from m2clip.data.built_in.motion import CLASSES, render_clip
from m2clip.data.built_in.rendered_set import write_clip
from m2clip.train.state import list_checkpoints
from tests.commands.calls import call, one_line

NAMES = ("a circle growing", "a square moving left", "a star shrinking", "a triangle fading in")
SHORT = ("--optim.epochs", 4, "--data.repeat", 3, "--data.num_frames", 4, "--data.workers", 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty videos of four classes, landscape, portrait and square, and two that are none."""
    folder = tmp_path_factory.mktemp("own") / "videos"
    shown = {one.name: one for one in CLASSES}
    for label, name in enumerate(NAMES):
        (folder / name.replace(" ", "_")).mkdir(parents=True)
        for number in range(5):
            high, wide = ((0, 0), (0, 16), (16, 0))[number % 3]
            clip = np.pad(
                render_clip(shown[name], 10 * label + number), ((0, 0), (high, high), (wide, wide), (0, 0)), "edge"
            )
            write_clip(folder / name.replace(" ", "_") / f"v{number}.mp4", clip)
    (folder / "a_square_moving_left" / "page.mp4").write_text("<html>404</html>")
    (folder / "a_star_shrinking" / "empty.mp4").write_text("")
    return folder


def test_a_folder_becomes_a_run(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(videos, "videos")
    code, out, err = call(capfd, "train", "videos", *SHORT)
    assert code == 0, err
    assert "left out: 2 of 22 videos, all named in runs/videos/lists/check/report.json" in out
    assert (
        "unreadable: videos/a_square_moving_left/page.mp4: " in out
        and "unreadable: videos/a_star_shrinking/empty" in out
    )
    assert "held out: 4 of 20 videos" in out and "16 videos to train on, 4 to score by, 4 classes" in out
    assert "give --clip ViT-B-16-quickgelu" in out
    assert "clips are not mirrored: classes tell left from right ('a square moving left')" in out
    assert "24 steps of 8 clips, 12 passes over the videos, in fp32 on the cpu" in out
    assert re.search(r"about \d+\.\d minutes, by a measured \d+\.\d clips per second", out)
    # As much before the first step as after the last one.
    assert out.index("unreadable") < out.index("24 steps") < out.index("epoch 1") < out.index("worst first")
    run = tmp_path / "runs" / "videos"
    names = {"adapters.safetensors", "val.json", "val_confusion.png", "curves.png", "metrics.csv", "lists"}
    names |= {"val_predictions.csv", "val_classes.csv"}
    assert names <= {path.name for path in run.iterdir()}
    (result,) = json.loads((run / "val.json").read_text())["results"]
    assert result["denominator"] == 4 and result["supervised"]["top1"] >= 0.75
    mistakes = result["supervised"]["top1"] < 1
    assert (run / "val_mistakes.png").exists() == mistakes != ("there is no picture of mistakes" in out)

    # The command that is printed at the end works as it is pasted.
    program, *words = shlex.split(out.splitlines()[-1].removeprefix("use it: "))
    assert program == "m2clip"
    code, out, _ = call(capfd, *words)
    assert code == 0 and all(name in out for name in NAMES)

    # Again: nothing is trained, the same lists are scored.
    lists = {path: path.read_text() for path in (run / "lists").glob("*.txt")}
    weights = (run / "adapters.safetensors").read_bytes()
    code, out, _ = call(capfd, "train", "videos", *SHORT, "--json")
    assert code == 0 and json.loads(out)["result"]["denominator"] == 4
    assert {path: path.read_text() for path in lists} == lists and len(lists) == 2
    assert (run / "adapters.safetensors").read_bytes() == weights
    assert "holds a run with a plan of its own: --minutes" in one_line(call(capfd, "train", "videos", "--minutes", 1))
    assert "'optim.lr'" not in one_line(call(capfd, "train", "videos", *SHORT, "--optim.lr", 1))


def test_minutes_decide_the_steps(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("m2clip.protocols.own_videos.seconds_per_clip", lambda config, device, clip: 0.2)
    output = tmp_path / "run"
    words = ("train", videos, "--output", output, "--data.num_frames", 2, "--data.workers", 0, "--minutes")
    assert "is too short: a step takes 1.6 seconds here" in one_line(call(capfd, *words, 0.1))
    # 30 seconds, less 11 validations of 4 videos, are 106 clips: 13 steps of 8, 12 of them in 6 epochs of a pass each.
    code, out, err = call(capfd, *words, 0.5)
    assert code == 0, err
    assert "12 steps of 8 clips, 6 passes over the videos" in out
    assert "about 0.4 minutes, by a measured 5.0 clips per second" in out
    assert list_checkpoints(output / "checkpoints")


def test_what_is_no_video_and_no_recipe(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = one_line(call(capfd, "train", "vidoes"))
    assert "'vidoes' is neither a folder or list of videos nor a recipe (aim_demo, " in said
    assert "what is trained on?" in one_line(call(capfd, "train"))
    assert "'x' belongs to no option" in one_line(call(capfd, "train", "x", "--config", "m2clip_demo"))
    assert "'y' belongs to no option" in one_line(call(capfd, "train", videos, "y"))
    assert "data.train is not set" in one_line(call(capfd, "train", "m2clip_demo"))  # a recipe by its name
    assert "--minutes is for VIDEOS" in one_line(call(capfd, "train", "m2clip_demo", "--minutes", 1))
    assert "is for videos of your own" in one_line(call(capfd, "train", "--config", "auto"))
    assert "both say which videos" in one_line(call(capfd, "train", videos, "--data.train", videos))
    assert "both say how long" in one_line(call(capfd, "train", videos, "--minutes", 1, "--optim.epochs", 3))
    assert "no such run" in one_line(call(capfd, "train", videos, "--init", "runs/k400"))
    assert "no such run" in one_line(call(capfd, "train", "m2clip_demo", "--init", "runs/k400"))
    assert "give one of them" in one_line(call(capfd, "train", videos, "--init", "a", "--model.init", "b"))
    monkeypatch.setattr("m2clip.train.loggers.find_spec", lambda name: None)
    assert "mlflow is not installed: pip install" in one_line(call(capfd, "train", videos, "--loggers", "mlflow"))
    assert "unknown method" in one_line(call(capfd, "train", videos, "--method", "m3clip"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_commands_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own_videos.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:^|`|\$ )(m2clip (?:train|predict|eval|compare) [^`\n]+)", page, re.MULTILINE)
    assert len(commands) == 9
    for command in (command for command in commands if "--help" not in command):
        parsed, rest = build_parser().parse_known_args(shlex.split(command)[1:])
        if parsed.command == "train":
            word, others = take_word(rest)
            load_config("auto", [f"data.train={word}", *join_overrides(others)])
        else:
            assert not rest


def test_folders_of_others(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = shutil.copytree(videos, tmp_path / "videos")
    before = sorted(own.rglob("*"))
    assert "lies within" in one_line(call(capfd, "train", own, "--output", own / "run"))
    monkeypatch.chdir(own)
    assert "lies within" in one_line(call(capfd, "train", "."))
    assert sorted(own.rglob("*")) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "lists").mkdir()
    assert "holds no checkpoint, but other files" in one_line(
        call(capfd, "train", own, "--output", tmp_path / "thesis")
    )
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["lists"]
