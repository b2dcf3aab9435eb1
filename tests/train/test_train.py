"""The trainer: bad numbers, bad videos, signals, validation, two processes, and what the run folder holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import m2clip
from m2clip.errors import InputError
from m2clip.methods.m2clip import M2CLIP
from m2clip.train import trainer as train
from m2clip.train.state import Progress, list_checkpoints, load_newest
from m2clip.train.stopping import Stopped
from tests.train.test_distributed import free_port
from tests.train.training_run import CLASS_NAMES, build_clip, build_config, read_losses, write_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def spoil_loss(monkeypatch: pytest.MonkeyPatch, calls: set[int], gradient_only: bool = False) -> None:
    """Make the given calls of the loss, counted from 0, not a number, or only their gradient."""
    original: Callable[..., Any] = M2CLIP.loss
    count = iter(range(1000))

    def loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if next(count) in calls:
            if gradient_only:
                result.total.register_hook(lambda grad: grad * float("nan"))
            else:
                result.total = result.total * float("nan")
        return result

    monkeypatch.setattr(M2CLIP, "loss", loss)


def test_three_bad_steps_stop_and_spare_the_checkpoint(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 7 batches an epoch in steps of 2, 2, 2 and 1: batches 4, 6 and 8 lie in the third, fourth and fifth step.
    spoil_loss(monkeypatch, {4, 6, 8})
    with pytest.raises(train.NonFiniteError) as caught:
        train.run(build_config(videos, tmp_path, "checkpoint_every=1"), clip=build_clip(), device="cpu", quiet=True)
    message = str(caught.value)
    assert "\n" not in message and message.count(str(videos.parent / "v")) == 2
    # The end of the epoch, after the fourth step, was kept too: with the weights of the second.
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.progress.step == 4
    good = load_file(tmp_path / "checkpoints" / "step-000000002" / "tensors.safetensors")
    assert good.keys() == checkpoint.tensors.keys()
    assert all(
        torch.equal(good[name], tensor) and tensor.isfinite().all() for name, tensor in checkpoint.tensors.items()
    )
    assert [row["step"] for row in read_losses(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_bad_step_is_skipped_and_names_its_videos(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gradient_only: bool,
) -> None:
    spoil_loss(monkeypatch, {0, 2, 6}, gradient_only)
    states = []

    def on_step(progress: Progress) -> None:
        states.append(progress.bad_steps)

    config = build_config(videos, tmp_path, "optim.epochs=1")
    train.run(config, clip=build_clip(), device="cpu", on_step=on_step)
    assert states == [1, 2, 0, 1]
    checkpoint = load_newest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.progress.step == 4
    steps_taken = {value.item() for name, value in checkpoint.tensors.items() if name.endswith(".step")}
    assert steps_taken == {1.0}
    lines = [line for line in capsys.readouterr().out.splitlines() if "not finite" in line]
    assert len(lines) == 3 and lines[0].startswith("step 1:")
    assert lines[0].count(str(videos.parent / "v")) == (4 if gradient_only else 2)
    assert [row["step"] for row in read_losses(tmp_path)] == ["3"]


def test_unreadable_videos_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = write_videos(tmp_path / "videos")
    for frame in (tmp_path / "videos" / "v3").iterdir():
        frame.write_bytes(b"no picture")
    run = train.run(build_config(videos, tmp_path / "run"), clip=build_clip(), device="cpu")
    entries = [json.loads(line) for line in (run / "bad_videos.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in entries] == ["v3"]
    assert entries[0]["replaced_by"] != entries[0]["path"] and entries[0]["error"]
    said = capsys.readouterr().out
    assert "replaced by another" in said and said.count(entries[0]["path"]) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_a_checkpoint(videos: Path, tmp_path: Path, number: signal.Signals) -> None:
    whole = train.run(build_config(videos, tmp_path / "whole"), clip=build_clip(), device="cpu", quiet=True)
    config = build_config(videos, tmp_path / "cut", "checkpoint_every=0")

    def on_step(progress: Progress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 3; start again") as stopped:
        train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=on_step)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    checkpoint = load_newest(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None and checkpoint.progress.step == 3
    train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert read_losses(tmp_path / "cut") == read_losses(whole)


def test_validation_and_run_folder(videos: Path, tmp_path: Path) -> None:
    overrides = (f"data.val={videos}", "keep=best", "validate_every=2")
    run = train.run(build_config(videos, tmp_path / "a", *overrides), clip=build_clip(), device="cpu", quiet=True)
    rows = [row for row in read_losses(run) if row["val_top1"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [("8", "2"), ("12", "3")]
    assert sorted(path.name for path in run.glob("eval_*.json")) == ["eval_epoch_002.json", "eval_epoch_003.json"]
    assert len(list_checkpoints(run / "checkpoints")) == 2 and list((run / "tensorboard").iterdir())
    model = m2clip.load_adapters(run, build_clip())
    assert model.class_names == CLASS_NAMES

    # Validation must not change what training computes, nor be repeated or lost when cut off before it.
    plain = train.run(build_config(videos, tmp_path / "b"), clip=build_clip(), device="cpu", quiet=True)
    trained = [{name: row[name] for name in read_losses(plain)[0]} for row in read_losses(run) if row["loss"]]
    assert trained == read_losses(plain)

    def kill(progress: Progress) -> None:
        if progress.epoch == 2:
            raise RuntimeError

    cut = build_config(videos, tmp_path / "c", *overrides)
    with pytest.raises(RuntimeError):
        train.run(cut, clip=build_clip(), device="cpu", quiet=True, on_step=kill)
    assert not [row for row in read_losses(tmp_path / "c") if row.get("val_top1")]
    train.run(cut, clip=build_clip(), device="cpu", quiet=True)
    assert read_losses(tmp_path / "c") == read_losses(run)


def test_half_precision_trains(videos: Path, tmp_path: Path) -> None:
    config = build_config(videos, tmp_path / "bf16", "optim.precision=bf16", "optim.epochs=1")
    rows = read_losses(train.run(config, clip=build_clip(), device="cpu", quiet=True))
    plain = build_config(videos, tmp_path / "fp32", "optim.epochs=1")
    expected = read_losses(train.run(plain, clip=build_clip(), device="cpu", quiet=True))
    assert rows[0]["loss"] != expected[0]["loss"]
    assert float(rows[0]["loss"]) == pytest.approx(float(expected[0]["loss"]), rel=0.03)
    checkpoint = load_newest(tmp_path / "bf16" / "checkpoints")
    assert checkpoint is not None and all(tensor.dtype == torch.float32 for tensor in checkpoint.tensors.values())


def test_loss_scaling_changes_nothing_and_overflow_is_no_failure(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(videos, tmp_path / "plain", "optim.epochs=1", "optim.clip_grad=1")
    expected = read_losses(train.run(config, clip=build_clip(), device="cpu", quiet=True))
    original = torch.amp.GradScaler
    for name, scale in (("scaled", 2.0**10), ("overflowing", 2.0**127)):
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled, scale=scale: original(device, scale))
        config = build_config(videos, tmp_path / name, "optim.epochs=1", "optim.clip_grad=1")
        rows = read_losses(train.run(config, clip=build_clip(), device="cpu", quiet=True))
        checkpoint = load_newest(tmp_path / name / "checkpoints")
        assert checkpoint is not None and checkpoint.progress.bad_steps == 0
        if name == "scaled":
            # Powers of two scale without rounding.
            assert [float(row["loss"]) for row in rows] == pytest.approx(
                [float(row["loss"]) for row in expected], rel=1e-6
            )
            assert checkpoint.state["scaler"]["scale"] == scale
        else:
            assert checkpoint.state["scaler"]["scale"] < scale


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.train=null",), "data.train is not set"),
        (("data.classes=null",), "data.classes"),
        (("optim.batch_size=99",), "optim.batch_size"),
        (("optim.precision=fp16",), "needs a GPU"),
        (("model.method=clip", "model.options={}"), "'clip'"),
    ],
)
def test_impossible_runs(videos: Path, tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        train.run(build_config(videos, tmp_path, *overrides), clip=build_clip(), device="cpu", quiet=True)
    assert "\n" not in str(caught.value)


SCRIPT = """
import sys
import torch
from pathlib import Path
from m2clip import train
from tests.train.training_run import build_clip, build_config

torch.set_num_threads(1)
videos, output, step, *overrides = sys.argv[1:]

def on_step(progress):
    if progress.step == int(step):
        raise SystemExit(3)

train.run(build_config(Path(videos), Path(output), *overrides), clip=build_clip(), device="cpu", on_step=on_step)
"""


def start_processes(count: int, *arguments: str) -> list[int]:
    port = str(free_port())
    started = []
    for rank in range(count):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in group.items()}, "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments],
                env=environment,
                cwd=Path(__file__).parents[2],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    return [process.wait(120) for process in started]


def test_two_processes_train_as_one_and_resume(videos: Path, tmp_path: Path) -> None:
    # One process with 4 clips a batch and two with 2 draw the same clips, but in another order: with every word masked
    # and without dropout nothing depends on the order.
    options = (
        "model.options={width: 8, text_width: 8, vc_dropout: 0.0, mask_rate: 1.0}",
        "optim.epochs=2",
        "timeout=60",
    )
    one = build_config(videos, tmp_path / "one", *options, "optim.batch_size=4")
    train.run(one, clip=build_clip(), device="cpu", quiet=True)
    assert start_processes(2, str(videos), str(tmp_path / "two"), "99", *options) == [0, 0]
    alone, together = read_losses(tmp_path / "one"), read_losses(tmp_path / "two")
    assert len(alone) == len(together) == 4
    for name in ("loss", "loss_contrastive", "loss_cmc", "loss_cmlm", "loss_vc", "grad_norm"):
        assert float(together[0][name]) == pytest.approx(float(alone[0][name]), rel=1e-5), name
    assert float(together[-1]["loss"]) == pytest.approx(float(alone[-1]["loss"]), rel=2e-3)

    assert start_processes(2, str(videos), str(tmp_path / "cut"), "3", *options) == [3, 3]
    assert start_processes(2, str(videos), str(tmp_path / "cut"), "99", *options) == [0, 0]
    assert read_losses(tmp_path / "cut") == together
    with pytest.raises(InputError, match="processes"):
        train.run(build_config(videos, tmp_path / "two", *options), clip=build_clip(), device="cpu", quiet=True)
