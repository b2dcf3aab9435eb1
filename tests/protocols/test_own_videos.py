"""The plan of a run on somebody's own videos, without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import m2clip
from m2clip.config import load_config
from m2clip.errors import InputError
from m2clip.protocols import own_videos
from m2clip.protocols.own_videos import seconds_per_clip, train_on_videos
from m2clip.towers.loading import bare_clip, load_clip
from m2clip.train import checks
from m2clip.train.stopping import Stopped

CPU = torch.device("cpu")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list whose videos nobody opens, and a trainer that does nothing."""
    import m2clip.data.train_lists as train_lists
    from m2clip.data.lists.annotations import load_annotations

    lines = [f"{tmp_path}/v/{number}.mp4,{('jump', 'run')[number % 2]}\n" for number in range(40)]
    (tmp_path / "list.csv").write_text("video,label\n" + "".join(lines))
    monkeypatch.setattr(train_lists, "_looked_at", lambda data, path, *rest: (load_annotations(path), None))
    monkeypatch.setattr(own_videos, "seconds_per_clip", lambda config, device, clip: 0.5)
    monkeypatch.setattr(own_videos.trainer, "run", lambda config, **options: Path(config.output))
    monkeypatch.setattr(own_videos, "base_clip", lambda model: bare_clip(model.clip))
    monkeypatch.setattr(own_videos, "is_kept", lambda name, tag: False)
    return tmp_path / "list.csv"


def plan_of(listed: Path, *overrides: str, **options: Any) -> tuple[Any, Any, list[str]]:
    said: list[str] = []
    output = f"output={listed.parent / 'run'}"
    config, _, plan = train_on_videos(listed, [output, *overrides], device=CPU, say=said.append, **options)
    return config, plan, said


def test_a_plan_in_words_and_fields(listed: Path) -> None:
    config, plan, said = plan_of(listed)
    optim = config.optim
    assert (config.data.repeat, optim.epochs, optim.batch_size, config.data.num_frames) == (11, 10, 16, 8)
    assert (config.model.options["width"], config.keep, optim.precision) == (64, "best", "fp32")
    assert (plan.steps, plan.clips, plan.per_clip) == (220, 16, 0.5)
    # 220 steps of training and 11 times the 8 videos that are held out.
    assert plan.minutes == pytest.approx((220 * 16 + 11 * 8) * 0.5 / 60)
    assert said[-1] == f"about {plan.minutes:.1f} minutes, by a measured 2.0 clips per second"


def test_the_real_clip_is_taken_where_its_weights_are(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_videos, "is_kept", lambda name, tag: (name, tag) == ("ViT-B-16-quickgelu", "openai"))
    config, plan, said = plan_of(listed)
    assert (config.model.clip, config.model.pretrained, config.model.options) == ("ViT-B-16-quickgelu", "openai", {})
    assert plan.overrides[0] == "model.clip=ViT-B-16-quickgelu"
    assert "m2clip on ViT-B-16-quickgelu (openai)" in said
    assert plan_of(listed, "model.clip=tiny")[0].model.clip == "tiny"


def test_a_run_to_start_from_decides_before_the_rule(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = m2clip.create_model("st_adapter", load_clip("tiny"), ["walk", "fall"], 4, width=24)
    base.views = {**base.views, "sampling": "dense", "stride": 2}
    folder = m2clip.save_adapters(base, listed.parent / "base")
    config, plan, _ = plan_of(listed, init=folder)
    assert (config.model.method, config.data.num_frames, config.model.options["width"]) == ("st_adapter", 4, 24)
    assert (config.model.init, config.data.stride, config.model.clip) == (str(folder), 2, "tiny")
    # A run that has begun goes on without what it started from.
    for module in (own_videos, checks):
        monkeypatch.setattr(module, "list_checkpoints", lambda folder: [folder])
    shutil.rmtree(folder)
    assert plan_of(listed, init=folder)[:2] == (config, plan)
    monkeypatch.undo()
    with pytest.raises(InputError, match="no such run, checkpoint or saved adapters"):
        plan_of(listed, init=folder)


def test_what_cannot_be_planned(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^--minutes 0.01 is too short: a step takes 8 seconds here"):
        plan_of(listed, minutes=0.01)
    shutil.rmtree(listed.parent / "run")
    monkeypatch.setattr(own_videos, "list_checkpoints", lambda folder: [folder])
    with pytest.raises(InputError, match=r"run holds a run by a recipe: give another --output"):
        plan_of(listed)


def test_a_run_that_has_begun_keeps_its_plan(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan_of(listed, minutes=2)[1]
    monkeypatch.setattr(own_videos, "list_checkpoints", lambda folder: [folder])
    monkeypatch.setattr(own_videos, "seconds_per_clip", None)  # nothing is measured again
    assert plan_of(listed, minutes=2)[1] == first == plan_of(listed)[1]
    with pytest.raises(InputError, match="--minutes is for a new --output"):
        plan_of(listed, minutes=3)


def test_a_signal_while_the_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(config: Any, **options: Any) -> None:
        raise Stopped(f"{config.output}: stopped after step 3; start again to resume from there", 15)

    monkeypatch.setattr(own_videos.trainer, "run", stopped)
    with pytest.raises(Stopped, match=r"^stopped while the speed was measured; nothing is trained yet$") as stop:
        seconds_per_clip(load_config("auto"), CPU, torch.nn.Identity())
    assert stop.value.exit_code == 143
