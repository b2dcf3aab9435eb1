"""Training on a GPU: recorded and compiled steps train as plain ones, none waits for the GPU, runs are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import waits
from m2clip.train import trainer as train
from m2clip.train.state import Progress
from m2clip.train.stepping import cuda_capture
from tests.clips import random_video
from tests.train.test_stepping import LABELS, batches, build, stepper, train_steps
from tests.train.training_run import build_clip, build_config, read_losses, write_videos

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda")
SIZES = (2, 1, 2, 2)  # accumulated passes


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def pinned(data: list[Any]) -> list[Any]:
    return [tuple(tensor.pin_memory() for tensor in inputs) for inputs in data]


def losses(found: list[Any]) -> list[float]:
    return [each.losses["loss"] for each in found]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_graphs_train_as_plain_steps(precision: str) -> None:
    plain, recorded = (build(precision, device=DEVICE) for _ in range(2))
    data = pinned(batches(plain, 7))
    expected = train_steps(stepper(plain), data, SIZES)
    found = train_steps(stepper(recorded, cuda_capture), data, SIZES)
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    # Dropout draws the same numbers, or the losses would differ from the first step on.
    assert losses(found)[0] == pytest.approx(losses(expected)[0], rel=tolerance)
    assert losses(found) == pytest.approx(losses(expected), rel=5 * tolerance)
    assert [each.finite for each in found] == [each.finite for each in expected]


def test_a_graph_draws_what_plain_steps_draw() -> None:
    after = []
    for capture in (None, cuda_capture):
        model = build(device=DEVICE)
        train_steps(stepper(model, capture), pinned(batches(model, 7)), SIZES)
        after.append(torch.cuda.get_rng_state())
    assert torch.equal(*after)


@pytest.mark.slow
@pytest.mark.parametrize("capture", [None, cuda_capture])
def test_compiled_steps_train_as_plain_ones(capture: Any) -> None:
    plain, compiled = (build("bf16", dropout=0.0, device=DEVICE) for _ in range(2))
    data = pinned(batches(plain, 7))
    expected = train_steps(stepper(plain), data, SIZES)
    found = train_steps(stepper(compiled, capture, compiled=True), data, SIZES)
    assert losses(found) == pytest.approx(losses(expected), rel=5e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capture", [None, cuda_capture])
def test_no_step_waits_for_the_gpu(capture: Any, precision: str) -> None:
    model = build(precision, device=DEVICE)
    data = pinned(batches(model, 4))
    step = stepper(model, capture)
    train_steps(step, data, (1, 1))
    assert waits(lambda: step(data[:2], {"stop": 0.0})) == 0
    assert waits(lambda: torch.ones(2, device=DEVICE).tolist()) > 0  # that one would be seen


@pytest.mark.parametrize("capture", [None, cuda_capture])
def test_steps_that_are_not_finite_change_nothing(capture: Any) -> None:
    model = build("bf16", device=DEVICE)
    data = batches(model, 2)
    data[1][0][0, 0, 0, 0, 0] = float("nan")
    step = stepper(model, capture)
    train_steps(step, data, (1,))
    before = {name: tensor.clone() for name, tensor in model.trained_state_dict().items()}
    bad = step(pinned(data), {}).read()
    assert not bad.finite and bad.bad_passes == [1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained_state_dict().items())
    assert step(data[:1], {}).read().finite


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_flash_attention_takes_every_attention_of_the_vision_tower(precision: str) -> None:
    model = build(precision, device=DEVICE)
    video = random_video().to(DEVICE)
    with sdpa_kernel(SDPBackend.MATH):
        expected = model.visual(video).float()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot
        found = model.visual(video)
        found.float().sum().backward()
        model.text.blocks[0].attention_half(found.detach(), causal=True)
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("option", ["optim.cuda_graph=false", "optim.cuda_graph=true"])
def test_runs_are_resumed(videos: Path, tmp_path: Path, option: str) -> None:
    options = (option, "optim.precision=bf16", f"data.val={videos}", "checkpoint_every=1")
    whole = train.run(build_config(videos, tmp_path / "whole", *options), clip=build_clip(), device="cuda", quiet=True)

    def kill(progress: Progress) -> None:
        if progress.step == 6:
            raise KeyError

    config = build_config(videos, tmp_path / "cut", *options)
    with pytest.raises(KeyError):
        train.run(config, clip=build_clip(), device="cuda", quiet=True, on_step=kill)
    train.run(config, clip=build_clip(), device="cuda", quiet=True)
    expected, found = read_losses(whole), read_losses(tmp_path / "cut")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        if mine["loss"]:
            assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=2e-2)


def test_three_bad_steps_stop_a_run(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2clip.methods.m2clip import M2CLIP

    original: Any = M2CLIP.loss

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        result.total = result.total * float("nan")
        return result

    monkeypatch.setattr(M2CLIP, "loss", spoiled)
    config = build_config(videos, tmp_path, "log_every=100", "checkpoint_every=0")
    with pytest.raises(train.NonFiniteError, match="up to step 3"):
        train.run(config, clip=build_clip(), device="cuda", quiet=True)


def test_words_need_not_be_drawn_beforehand() -> None:
    model = build(dropout=0.0, device=DEVICE)
    video, labels = random_video().to(DEVICE), LABELS.to(DEVICE)
    drawn = tuple(tensor.to(DEVICE) for tensor in model.draw(LABELS, torch.Generator().manual_seed(4)))
    inside = model.loss(video, labels, torch.Generator().manual_seed(4))
    outside = model.loss(video, labels, drawn=drawn)
    assert all(torch.equal(inside.parts[name], outside.parts[name]) for name in inside.parts)
