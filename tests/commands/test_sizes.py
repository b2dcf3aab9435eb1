"""Frames that are wider than high, through every command, and runs that keep their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import m2clip
from m2clip.checkpoints.adapters import read_adapter_config
from m2clip.config import load_config
from m2clip.config_fields import deciding
from tests.commands.calls import call, one_line
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip

SIZE = (32, 64)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four wide videos of two classes, and a run for frames of 32x64."""
    folder = tmp_path_factory.mktemp("wide")
    for number, name in enumerate(("run", "run", "jump", "jump")):
        write_video(folder / "videos" / name / f"{number}.mp4", num_frames=6 + number, size=(96, 54))
    clip = random_tiny_clip(SIZE)
    m2clip.save_adapters(m2clip.create_model("m2clip", clip, ["jump", "run"], 2, width=8), folder / "run")
    return folder


def done(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


@pytest.mark.usefixtures("tiny")
def test_commands_of_a_run_on_wide_frames(wide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, videos = wide / "run", wide / "videos"
    assert read_adapter_config(run)["clip"]["image_size"] == "32x64"
    strip = tmp_path / "strip.png"
    found = done(call(capfd, "predict", videos / "run", "--run", run, "--crops", 3, "--filmstrip", strip, "--json"))
    assert len(found) == 2
    scored = done(call(capfd, "eval", run, "--list", videos, "--output", tmp_path, "--workers", 0, "--json"))
    assert scored["results"][0]["denominator"] == 4
    for _ in range(2):  # the second call finds everything done, of the same size
        features = done(call(capfd, "features", videos, tmp_path / "out", "--run", run, "--workers", 0, "--json"))
        assert features["videos"] == 4 and not features["failures"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["views.size"] == [32, 64]
    labelled = done(call(capfd, "label", videos, tmp_path / "labels", "--run", run, "--workers", 0, "--json"))
    assert not labelled["failures"]


@pytest.mark.usefixtures("tiny")
def test_frozen_clip_on_wide_frames(wide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frozen = ("--clip", "tiny", "--frames", 2, "--workers", 0, "--json")
    out, square = tmp_path / "out", tmp_path / "square"
    done(call(capfd, "features", wide / "videos", out, "--image-size", "32x64", *frozen))
    assert "views.size" in one_line(call(capfd, "features", wide / "videos", out, *frozen))
    done(call(capfd, "features", wide / "videos", square, "--image-size", "48", *frozen))
    done(call(capfd, "features", wide / "videos", square, "--image-size", "48x48", *frozen))  # the same


@pytest.mark.usefixtures("tiny")
def test_frames_in_python_and_the_clips_that_a_model_makes_of_them(wide: Path) -> None:
    model = m2clip.load_adapters(wide / "run")
    assert model.image_size == SIZE
    frames = np.random.default_rng(0).integers(0, 256, (4, 54, 96, 3), dtype=np.uint8)
    views = model.transform(frames)
    assert views.shape == (1, 2, 3, 32, 64) and model(views).similarity.shape == (1, 2)
    assert len(m2clip.predict(model, frames).ranked) == 2
    with pytest.raises(ValueError, match=r"video must be \(B, 2, 3, 32, 64\), got \(1, 2, 3, 64, 32\)"):
        model(views.mT)


@pytest.mark.usefixtures("tiny")
def test_a_run_on_wide_frames_resumes_with_its_size_alone(
    wide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    videos, run = wide / "videos", tmp_path / "run"
    fields = {
        "data.train": videos,
        "data.num_frames": 2,
        "data.workers": 0,
        "optim.batch_size": 2,
        "optim.epochs": 1,
        "optim.warmup_epochs": 0,
        "model.options.width": 8,
        "output": run,
    }
    words = [str(word) for name, value in fields.items() for word in (f"--{name}", value)]
    train = ("train", "--config", "m2clip_demo", "--json", *words, "--model.image_size")
    done(call(capfd, *train, "32x64"))
    assert load_config(run).model.image_size == [32, 64]
    assert m2clip.load_adapters(run).image_size == SIZE
    done(call(capfd, *train, "[32, 64]"))
    told = one_line(call(capfd, *train, "64x32"))
    assert "model.image_size ([32, 64] there, [64, 32] here)" in told


def test_an_earlier_run_of_one_number_is_the_same_run() -> None:
    one, pair = (load_config(None, [f"model.image_size={size}"]) for size in ("48", "48x48"))
    assert one.model.image_size == 48 and deciding(one, "training", "clip") == deciding(pair, "training", "clip")
