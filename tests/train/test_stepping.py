"""Optimiser steps: recorded, compiled and plain ones agree, bad ones change nothing, and none waits for a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import m2clip
from m2clip.config_fields import OptimConfig
from m2clip.errors import InputError
from m2clip.kernels import masked_word_loss
from m2clip.methods.heads import _loss_of_all_positions
from m2clip.towers.prompts import IGNORE
from m2clip.train import stepping
from m2clip.train import trainer as train
from m2clip.train.optim import build_optimizer
from m2clip.train.setup import LossModule
from m2clip.train.stepping import RecordedPass, Stepper
from tests.clips import NAMES, random_video, randomise, small_clip
from tests.train.training_run import build_clip, build_config, read_losses, write_videos

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 0])
Inputs = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def build(precision: str = "fp32", dropout: float = 0.5, device: torch.device = CPU) -> Any:
    torch.manual_seed(3)
    model = m2clip.create_model("m2clip", small_clip(), NAMES, 4, width=8, text_width=8, vc_dropout=dropout)
    randomise(model, 0.05)
    model.to(device)
    if precision != "fp32":
        model.set_precision(precision)
    return model.train()


def batches(model: Any, count: int) -> list[Inputs]:
    video = random_video(2 * count).split(2)
    return [(video[i], LABELS, *model.draw(LABELS, torch.Generator().manual_seed(i))) for i in range(count)]


def stepper(model: Any, capture: Any = None, clip_grad: float | None = 1.0, compiled: bool = False) -> Stepper:
    optimizer = build_optimizer(model, lr=1.0, samples_per_step=2, weight_decay=0.01)
    device, loss = model.logit_scale.device, LossModule(model)
    scaler = torch.amp.GradScaler(device.type, enabled=model.precision == "fp16")
    if compiled:
        stepping.compile_loss(loss, "default", capture is not None)
    return Stepper(loss, optimizer, scaler, clip_grad, device, capture, keep_gradients=compiled)


def train_steps(step: Stepper, data: list[Inputs], sizes: tuple[int, ...]) -> list[Any]:
    torch.manual_seed(7)
    found, rest = [], iter(data)
    for number, size in enumerate(sizes):
        for group in step.optimizer.param_groups:
            group["lr"] = group["peak_lr"] / (1 + number)
        found.append(step([next(rest) for _ in range(size)], {}).read())
    return found


def capture_with_warm_up(run: Callable[[], None]) -> Callable[[], None]:
    """What a CUDA graph's capture does to everything it touches, without a GPU."""
    state = torch.get_rng_state()
    for _ in range(3):
        run()
    torch.set_rng_state(state)
    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_passes_train_as_plain_ones(precision: str) -> None:
    plain, recorded = build(precision), build(precision)
    data = batches(plain, 7)
    sizes = (2, 1, 2, 2)  # accumulated passes; the second step is the short one at an epoch's end
    expected = train_steps(stepper(plain), data, sizes)
    found = train_steps(stepper(recorded, capture_with_warm_up), data, sizes)
    assert [each.losses for each in found] == [each.losses for each in expected]
    assert len({each.losses["loss"] for each in found}) == len(sizes)
    for name, tensor in plain.trained_state_dict().items():
        assert torch.equal(recorded.trained_state_dict()[name], tensor), name


def test_a_recorded_pass_uses_the_same_memory_and_refuses_other_shapes() -> None:
    model = build()
    step = stepper(model, capture_with_warm_up)
    data = batches(model, 2)
    train_steps(step, data, (1,))
    places = [parameter.grad.data_ptr() for parameter in step.parameters]
    assert step.recorded is not None
    buffers = [tensor.data_ptr() for tensor in step.recorded.inputs]
    train_steps(step, data[1:], (1,))
    assert [parameter.grad.data_ptr() for parameter in step.parameters] == places
    assert [tensor.data_ptr() for tensor in step.recorded.inputs] == buffers
    with pytest.raises(ValueError, match="record another"):
        step([(data[0][0][:1], *data[0][1:])], {})


def test_recording_keeps_gradients_that_are_there() -> None:
    weight = nn.Parameter(torch.ones(()))
    weight.grad = torch.tensor(5.0)

    def run_pass(inputs: Any, share: Tensor) -> Tensor:
        loss = weight * inputs[0] * share
        loss.backward()
        return loss.detach()[None]

    recorded = RecordedPass(run_pass, [weight], capture_with_warm_up)
    assert recorded([torch.tensor(3.0)], 0.5).tolist() == [1.5]
    assert weight.grad.item() == 6.5


@pytest.mark.parametrize("capture", [None, capture_with_warm_up])
def test_steps_that_are_not_finite_change_nothing(capture: Any) -> None:
    model = build()
    data = batches(model, 3)
    data[1][0][0, 0, 0, 0, 0] = float("nan")
    step = stepper(model, capture)
    (good,) = train_steps(step, data, (1,))
    before = {name: tensor.clone() for name, tensor in model.trained_state_dict().items()}
    moments = {id(p): {k: v.clone() for k, v in state.items()} for p, state in step.optimizer.state.items()}
    bad = step([data[0], data[1]], {"stop": 1.0}).read()
    assert good.finite and not bad.finite and bad.bad_loss
    assert bad.bad_passes == [1] and bad.counts == {"stop": 1.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained_state_dict().items())
    for parameter, state in step.optimizer.state.items():
        assert all(torch.equal(value, moments[id(parameter)][name]) for name, value in state.items())
    assert step([data[2]], {}).read().finite
    assert not torch.equal(model.vc.fc.weight, before["vc.fc.weight"])


def test_gradients_are_clipped_and_their_norm_is_that_before() -> None:
    model = build()
    data = batches(model, 1)
    step = stepper(model, clip_grad=1e-3)
    seen = []
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in step.parameters]).norm().item())
    )
    (found,) = train_steps(step, data, (1,))
    assert found.grad_norm > 0.01 and seen == [pytest.approx(1e-3, rel=1e-3)]


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let compiled losses run without a code generator, which takes a minute; returns how they were asked for."""
    asked: list[dict[str, Any]] = []

    def compile_quickly(self: nn.Module, **options: Any) -> None:
        asked.append(options)
        kept = {name: value for name, value in options.items() if name != "mode"}
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager", **kept)

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    return asked


def test_compiled_steps_train_as_plain_ones_without_recompiling(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train.run(build_config(videos, tmp_path / "plain", f"data.val={videos}"), clip=build_clip(), device="cpu")
    asked = count_compilations(monkeypatch)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        config = build_config(videos, tmp_path / "compiled", f"data.val={videos}", "optim.compile=default")
        compiled = train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert asked == [{"mode": "default", "dynamic": False, "fullgraph": True}]
    expected, found = read_losses(plain), read_losses(compiled)
    assert len(found) == len(expected) >= 12
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] == theirs[name] or float(mine[name]) == pytest.approx(
                float(theirs[name]), rel=1e-4, abs=1e-6
            )


def test_a_graph_around_an_autotuned_step_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_compilations(monkeypatch)
    for mode, graphed in (("max-autotune", True), ("max-autotune", False), ("default", True)):
        stepping.compile_loss(LossModule(build()), mode, graphed)
    assert [options["mode"] for options in asked] == ["max-autotune-no-cudagraphs", "max-autotune", "default"]


@pytest.mark.parametrize(
    ("options", "device", "processes", "words"),
    [
        ({}, "cpu", 1, "needs a GPU"),
        ({}, "cuda", 2, "one process"),
        ({"compile": "reduce-overhead"}, "cuda", 1, "records CUDA graphs itself"),
        ({"checkpointing": 1}, "cuda", 1, "checkpointing works without"),
    ],
)
def test_graphs_that_cannot_be_recorded_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], device: str, processes: int, words: str
) -> None:
    monkeypatch.setattr(stepping.distributed, "world_size", lambda: processes)
    stepping.check_step_options(OptimConfig(**options), torch.device(device))
    with pytest.raises(InputError, match=words) as caught:
        stepping.check_step_options(OptimConfig(**options, cuda_graph=True), torch.device(device))
    assert "\n" not in str(caught.value)


def test_a_run_with_a_graph_on_the_cpu_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="optim.cuda_graph needs a GPU"):
        train.run(build_config(videos, tmp_path, "optim.cuda_graph=true"), clip=build_clip(), device="cpu")


def test_what_is_drawn_has_shapes_of_its_own_and_gives_the_same_loss() -> None:
    model = build(dropout=0.0)
    draws = [model.draw(LABELS, torch.Generator().manual_seed(seed)) for seed in range(20)]
    others = [model.draw(torch.tensor([label, label])) for label in range(len(NAMES))]
    assert len({tuple(tensor.shape for tensor in drawn) for drawn in draws + others}) == 1
    assert any(not torch.equal(draws[0][2], drawn[2]) for drawn in draws)
    video = random_video()
    inside = model.loss(video, LABELS, torch.Generator().manual_seed(4))
    outside = model.loss(video, LABELS, drawn=draws[4])
    assert inside.parts.keys() == outside.parts.keys()
    assert all(torch.equal(inside.parts[name], outside.parts[name]) for name in inside.parts)


def test_words_of_all_positions_cost_what_the_masked_ones_do() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator, requires_grad=True) for shape in ((3, 4, 8), (9, 8)))
    bias = torch.randn(9, generator=generator, requires_grad=True)
    targets = torch.randint(0, 9, (3, 4), generator=generator)
    targets[torch.rand(3, 4, generator=generator) < 0.4] = IGNORE
    for mask, divisor in ((targets, None), (targets, 2.5), (torch.full_like(targets, IGNORE), None)):
        results = []
        for loss in (
            masked_word_loss(hidden, weight, bias, mask, divisor=divisor),
            _loss_of_all_positions(hidden, weight, bias, mask, divisor),
        ):
            results.append([loss, *torch.autograd.grad(loss, (hidden, weight, bias))])
        torch.testing.assert_close(results[1], results[0])
