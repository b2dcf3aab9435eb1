"""Blocks computed again in the backward pass: the same losses and gradients to the bit, of fewer bytes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import m2clip
from benchmarks.memory import KeptTensors
from m2clip.data.episodes import EpisodeShape
from m2clip.kernels import use_backend
from m2clip.towers.joint import EMBEDDING
from tests.clips import NAMES, randomise, small_clip
from tests.methods.whole_models import OPTIONS, TOKENIZER, build

METHODS = [*sorted(OPTIONS.keys() - {"clip"}), "viclip"]
LABELS = torch.tensor([1, 0, 1, 0])


def step(model: Any, blocks: int, context: Any = None) -> tuple[dict[str, Tensor], int]:
    """Loss, gradients and the next random number, and the bytes kept between the passes."""
    model.recompute(blocks)
    model.zero_grad()
    torch.manual_seed(5)
    video = torch.randn(4, model.num_frames, 3, *model.image_size, generator=torch.Generator().manual_seed(1))
    with context or nullcontext(), KeptTensors(model) as kept:
        total = model.loss(video, LABELS, generator=torch.Generator().manual_seed(2)).total
    total.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": total.detach(), "random": torch.rand(3), **found}, kept.bytes


def trained(method: str) -> Any:
    """A model in training, with what it draws by chance."""
    if method == "viclip":
        clip = small_clip()
        clip.visual.register_parameter(EMBEDDING, torch.nn.Parameter(torch.randn(1, 4, 32)))
        model = m2clip.create_model("msta", clip, NAMES, 4, tokenizer=TOKENIZER, width=8)
        randomise(model)
    else:
        model = build(method)
    if model.method == "msta":
        model.config.alpha = 0.0  # its other loss needs descriptions
    if method == "ma_fsar":
        model.episode = EpisodeShape(way=2, shots=1, queries=1)
    return model.train()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 5
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("method", METHODS)
def test_the_same_numbers_of_fewer_bytes(method: str) -> None:
    model = trained(method)
    expected, everything = step(model, 0)
    one, fewer = step(model, 1)
    all_of_them, least = step(model, 1000)
    assert_same(one, expected)
    assert_same(all_of_them, expected)
    assert least < fewer < everything


@pytest.mark.parametrize("method", METHODS)
def test_the_same_numbers_in_half_precision(method: str) -> None:
    model = trained(method)
    found = [step(model, blocks, torch.autocast("cpu", torch.bfloat16))[0] for blocks in (0, 2)]
    assert_same(found[1], found[0])
    model.set_precision("bf16")
    found = [step(model, blocks)[0] for blocks in (0, 2)]
    assert_same(found[1], found[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_backend_that_was_chosen_for_the_forward_pass_computes_again(method: str) -> None:
    model = trained(method)
    expected = step(model, 0, use_backend("reference"))[0]
    assert_same(step(model, 1000, use_backend("reference"))[0], expected)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_as_one_graph_it_computes_the_same(method: str) -> None:
    model = trained(method)
    model.fill_caches()
    expected = step(model, 0)[0]
    plain = model._loss
    model._loss = torch.compile(plain, fullgraph=True, dynamic=False, backend="aot_eager")
    found = step(model, 2)[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


@pytest.mark.parametrize("on", [True, False])
def test_without_gradients_nothing_is_computed_again(on: bool) -> None:
    model = trained("aim").eval()
    model.recompute(2)
    calls: list[int] = []
    for block in model.visual.blocks:
        block.register_forward_pre_hook(lambda *call: calls.append(1))
    with torch.set_grad_enabled(on):
        output = model(torch.zeros(1, 4, 3, *model.image_size)).logits
    assert len(calls) == 3
    if on:
        output.sum().backward()
        assert len(calls) == 5
