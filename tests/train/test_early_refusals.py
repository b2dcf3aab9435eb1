"""What cannot work is refused before a video is looked at, rendered or read, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import m2clip
from m2clip.config import load_config
from m2clip.data.built_in import rendered_set
from m2clip.errors import InputError
from m2clip.protocols import own_videos
from m2clip.protocols.runs import Contender, ProtocolFolder, Reporter
from m2clip.towers import weight_sources
from m2clip.towers.loading import check_clip, load_clip
from m2clip.train.checks import check_model
from tests.commands.calls import call, one_line

CPU = torch.device("cpu")
MISTAKES = {
    "model.clip=RN50": "RN50 cannot be used: vision models of type ModifiedResNet are not supported",
    "model.clip=ViT-B-61": "unknown CLIP 'ViT-B-61'",
    "model.method=clip": "has nothing to train",
    "model.method=ma_fsar": "is trained by episodes",
    "model.init=nowhere": "nowhere: no such run, checkpoint or saved adapters to start from",
    "optim.precision=fp16": "optim.precision is fp16, which needs a GPU",
    "optim.cuda_graph=true": "optim.cuda_graph needs a GPU",
    "data.reader=eyes": "unknown video reader 'eyes'",
    "model.image_size=4": "images of 4x4 pixels are smaller than a patch",
}


def never(*given: Any, **named: Any) -> Any:
    raise AssertionError("videos were looked at")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_on_videos(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_videos, "prepare_lists", never)
    (tmp_path / "videos").mkdir()
    with pytest.raises(InputError) as refused:
        own_videos.train_on_videos(tmp_path / "videos", [mistake, f"output={tmp_path / 'run'}"], device=CPU, say=None)
    assert MISTAKES[mistake] in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_protocols(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("m2clip_demo", ["data.train=train.txt", "data.val=val.txt", "model.clip=RN50"])
    with (
        pytest.raises(InputError, match="RN50 cannot be used"),
        ProtocolFolder("few-shot", [Contender("one", config)], tmp_path / "out", CPU, Reporter()),
    ):
        raise AssertionError("entered")
    monkeypatch.setattr(rendered_set, "render_built_in", never)
    words = ("--built-in", "motion", "--output", tmp_path / "out", "--device", "cpu", "--model.clip", "RN50")
    for command in (("fewshot",), ("base-to-novel",), ("episodes", "train")):
        assert "RN50 cannot be used" in one_line(call(capfd, *command, "--config", "m2clip_demo", *words))


@pytest.mark.parametrize("command", ["label", "features"])
def test_a_list_is_found_missing_before_the_model_is_loaded(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for opener in ("open_labelled", "open_frozen"):
        monkeypatch.setattr(f"m2clip.commands.shared.models.{opener}", never)
    names = ("--labels", "a", "b") if command == "label" else ()
    assert "nowhere" in one_line(call(capfd, command, tmp_path / "nowhere", tmp_path / "out", *names))


@pytest.mark.parametrize("words", [("eval", "--list"), ("eval", "--segments"), ("episodes", "eval", "--list")])
def test_what_is_scored_is_found_missing_before_the_model_is_loaded(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = m2clip.save_adapters(
        m2clip.create_model("m2clip", load_clip("tiny"), ["a", "b"], 4, width=8), tmp_path / "run"
    )
    monkeypatch.setattr("m2clip.commands.shared.models.open_run", never)
    more = ("--window", "1") if "--segments" in words else ()
    assert "nowhere" in one_line(call(capfd, *words[:-1], run, words[-1], tmp_path / "nowhere", *more))


def test_a_clip_is_checked_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sources, "reachable", never)
    with pytest.raises(InputError, match="no weights 'laion9' for ViT-B-32"):
        check_clip("ViT-B-32", "laion9")
    with pytest.raises(InputError, match="were trained with QuickGELU, and ViT-B-32 has GELU"):
        check_clip("ViT-B-32", "openai")
    with pytest.raises(InputError, match="is no file"):
        check_clip("ViCLIP-B-16", "nowhere.pth")
    check_clip("ViT-B-32", "laion2b_s34b_b79k", "64x96")
    check_clip("tiny", None)
    check_model(load_config("m2clip_demo"), CPU)
