"""The losses as PyTorch operators: opcheck, torch.compile, torch.export, FLOP counts, fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from m2clip import kernels
from m2clip.kernels.native import extension as native
from tests.kernels.test_losses import features
from tests.kernels.test_masked_words import words

needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension")
OPS = torch.ops.m2clip
NEEDS = [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (True, True, False)]


def assert_loss_is_sound(name: str, needs: tuple[bool, ...], v: Tensor, w: Tensor, labels: Tensor, *rest) -> None:
    """opcheck with gradients to those of v, w and the scale that need one."""
    scale, *options = rest
    own_v, own_w, own_scale = (x.clone().requires_grad_(need) for x, need in zip((v, w, scale), needs, strict=True))
    opcheck(getattr(OPS, name).default, (own_v, own_w, labels, own_scale, *options, "native", any(needs)))
    arguments = (v, w, labels, scale, *options, "native")
    _, saved = getattr(OPS, name)(*arguments, True)
    needed = [*needs[:2], False, needs[2]]
    opcheck(getattr(OPS, f"{name}_backward").default, (torch.tensor(0.7), *arguments, saved, needed))


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors]


@needs_native
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_cross_entropy_operators_pass_opcheck(rows, needs):
    assert_loss_is_sound("cosine_cross_entropy", needs, *features(rows, 6, 7))


@needs_native
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_soft_target_operators_pass_opcheck(rows, needs):
    v, _, _, scale = features(rows, 6, 7)
    assert_loss_is_sound("soft_target_kl", needs, v, 2 * v, torch.arange(rows) // 2, scale, 10.0)


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, True), (False, False, False)])
def test_the_masked_word_operator_passes_opcheck(needed):
    hidden, weight, bias, targets = words(5, 6, 7)
    inputs = (tensor.requires_grad_(need) for tensor, need in zip((hidden[0], weight, bias), needed, strict=True))
    opcheck(OPS.masked_word_loss.default, (*inputs, targets[0], *needed))


class AllLosses(nn.Module):
    """Everything in one graph, so that one compilation tests it all."""

    def forward(
        self, v: Tensor, w: Tensor, labels: Tensor, scale: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor,
        targets: Tensor,
    ) -> Tensor:  # fmt: skip
        classified = kernels.cosine_cross_entropy(v, w, labels, scale)
        matched = kernels.soft_target_kl(v, w[labels], labels, scale)
        return classified + 2 * matched + 3 * kernels.masked_word_loss(hidden, weight, bias, targets)


def all_inputs() -> list[Tensor]:
    return leaves(*features(6, 9, 16), *words(7, 30, 16))


def gradients(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [tensor for tensor in inputs if tensor.requires_grad])


def test_compiled_without_a_break_the_losses_are_those_of_eager_mode():
    inputs = all_inputs()
    eager, compiled = AllLosses(), torch.compile(AllLosses(), fullgraph=True)
    loss, expected = compiled(*inputs), eager(*inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for found, exact in zip(gradients(loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    compiled_alone = compiled(*(tensor.detach() for tensor in inputs))
    torch.testing.assert_close(compiled_alone, expected.detach(), rtol=1e-6, atol=0)


def test_exported_losses_run():
    inputs = [tensor.detach() for tensor in all_inputs()]
    program = torch.export.export(AllLosses(), tuple(inputs))
    fewer = [*inputs[:-1], inputs[-1].clone()]
    fewer[-1][0] = -100  # other masked words than those it was exported with
    for case in (inputs, fewer):
        torch.testing.assert_close(program.module()(*case), AllLosses()(*case), rtol=1e-6, atol=0)


@needs_native
def test_flops_of_the_products_are_counted():
    v, w, targets, scale = leaves(*features(6, 9, 16))
    with FlopCounterMode(display=False) as forward:
        loss = kernels.cosine_cross_entropy(v, w, targets, scale)
    assert forward.get_total_flops() == 2 * 6 * 9 * 16
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * 2 * 6 * 9 * 16
    with FlopCounterMode(display=False) as frozen_texts:
        kernels.soft_target_kl(v, v.detach(), targets, scale).backward()
    assert frozen_texts.get_total_flops() == 2 * 2 * 6 * 6 * 16


def test_fake_tensors_go_through():
    with FakeTensorMode() as mode:
        loss = AllLosses()(*(mode.from_tensor(tensor.detach()) for tensor in all_inputs()))
    assert loss.shape == () and loss.dtype == torch.float32
