"""The masked-word loss: chunks, devices' two ways to the softmax, frozen decoders, nothing masked, wrong words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from m2clip import kernels
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops import masked_words
from tests.kernels.test_losses import is_float, loss_and_gradients, uninitialised_memory_is_nan

needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension")
ROUNDINGS = 4 * torch.finfo(torch.float32).eps


def words(
    positions: int, vocabulary: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (2, N, D), weight, bias and targets, a third of them masked."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((2, positions, dim), (vocabulary, dim)))
    targets = torch.randint(0, vocabulary, (2, positions), generator=generator)
    targets[torch.rand(2, positions, generator=generator) > 0.3] = masked_words.IGNORE
    targets[0, 0] = vocabulary - 1
    return hidden.to(dtype), weight.to(dtype), torch.randn(vocabulary, generator=generator).to(dtype), targets


def eager(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = F.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def assert_as_accurate(inputs: tuple[Tensor, ...]) -> None:
    truth = loss_and_gradients(eager, *(tensor.double() if is_float(tensor) else tensor for tensor in inputs))
    found, expected = (loss_and_gradients(loss, *inputs) for loss in (kernels.masked_word_loss, eager))
    for index, (ours, theirs, exact) in enumerate(zip(found, expected, truth, strict=True)):
        error, allowed = (ours - exact).norm(), (3 if index else 2) * (theirs - exact).norm()
        assert error <= allowed + ROUNDINGS * exact.norm(), (index, error, allowed)


@pytest.mark.parametrize("vocabulary", [1, 5, 520, 5000])
@pytest.mark.parametrize("dim", [7, 64])
def test_it_is_as_accurate_as_the_reference(vocabulary, dim):
    assert_as_accurate(words(20, vocabulary, dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    assert_as_accurate(words(20, 50, 16, dtype=dtype))


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    assert_as_accurate(words(20, 520, 16))


def test_chunks_change_nothing_but_rounding(monkeypatch):
    inputs = words(40, 30, 16)
    whole = loss_and_gradients(kernels.masked_word_loss, *inputs)
    monkeypatch.setattr(masked_words, "CHUNK", 5 * 30)
    for found, expected in zip(loss_and_gradients(kernels.masked_word_loss, *inputs), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_gradients_are_computed_for_what_needs_them(trained):
    hidden, weight, bias, targets = words(9, 30, 16)
    inputs = {"hidden": hidden, "weight": weight, "bias": bias}
    complete = dict(
        zip(inputs, loss_and_gradients(kernels.masked_word_loss, *inputs.values(), targets)[1:], strict=True)
    )
    inputs[trained] = inputs[trained].detach().requires_grad_()
    (0.7 * kernels.masked_word_loss(*inputs.values(), targets)).backward()
    torch.testing.assert_close(inputs[trained].grad.double(), complete[trained], rtol=1e-6, atol=1e-8)


def test_nothing_masked_costs_nothing():
    hidden, weight, bias, targets = words(9, 30, 16)
    targets[:] = masked_words.IGNORE
    with uninitialised_memory_is_nan():
        for divisor in (None, 3.0, torch.tensor(2.5)):
            found = loss_and_gradients(
                lambda *inputs, by=divisor: kernels.masked_word_loss(*inputs, divisor=by), hidden, weight, bias, targets
            )
            assert not any(value.any() for value in found)


def test_every_run_gives_the_same_bits():
    inputs = words(30, 520, 33)
    first = loss_and_gradients(kernels.masked_word_loss, *inputs)
    with uninitialised_memory_is_nan():
        for _ in range(4):
            again = loss_and_gradients(kernels.masked_word_loss, *inputs)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_divisor_may_be_a_tensor():
    inputs = words(9, 30, 16)
    count = (inputs[3] != masked_words.IGNORE).sum()
    mean = kernels.masked_word_loss(*inputs)
    torch.testing.assert_close(kernels.masked_word_loss(*inputs, divisor=count.float() * 2), mean / 2)
    torch.testing.assert_close(kernels.masked_word_loss(*inputs, divisor=2 * count.item()), mean / 2)


def test_the_graph_may_be_used_twice():
    hidden, weight, bias, targets = words(9, 30, 16)
    hidden.requires_grad_()
    loss = kernels.masked_word_loss(hidden, weight, bias, targets)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_have_the_strides_of_the_parameters():
    hidden, weight, bias, targets = words(9, 30, 16)
    parameters = [nn.Parameter(weight.t().contiguous().t()), nn.Parameter(bias)]
    kernels.masked_word_loss(hidden.transpose(0, 1), *parameters, targets.t()).backward()
    assert [parameter.grad.stride() for parameter in parameters] == [parameter.stride() for parameter in parameters]


@pytest.mark.parametrize("extension", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize("word", [-1, 30])
def test_a_word_that_is_not_in_the_vocabulary_is_told(monkeypatch, extension, word):
    if not extension:
        monkeypatch.setattr(native, "extension", None)
    hidden, weight, bias, targets = words(9, 30, 16)
    targets[1, 4] = word
    with pytest.raises(ValueError, match=rf"targets must lie in \[0, 30\), got {word}$"):
        kernels.masked_word_loss(hidden, weight, bias, targets)


def test_autocast_leaves_the_loss_in_full_precision():
    inputs = words(9, 30, 16)

    def under_autocast(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return kernels.masked_word_loss(*tensors)

    expected = loss_and_gradients(kernels.masked_word_loss, *inputs)
    for found, exact in zip(loss_and_gradients(under_autocast, *inputs), expected, strict=True):
        assert torch.equal(found, exact)


def test_function_transforms():
    hidden, weight, bias, targets = words(9, 30, 16, dtype=torch.float64)
    found = torch.func.grad(lambda x: kernels.masked_word_loss(x, weight, bias, targets))(hidden)
    torch.testing.assert_close(0.7 * found, loss_and_gradients(eager, hidden, weight, bias, targets)[1])


def test_no_cuda_graph_is_recorded_of_what_waits_for_the_gpu():
    """torch.compile(mode="reduce-overhead") asks this of every operator, and records what lies around this one."""
    from torch._inductor.utils import is_cudagraph_unsafe_fx_node

    seen: dict[str, bool] = {}

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        seen.update((str(node.target), is_cudagraph_unsafe_fx_node(node)) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    torch.compile(kernels.masked_word_loss, backend=aot_autograd(fw_compiler=look))(*words(9, 30, 16))
    assert seen["m2clip.masked_word_loss.default"]
    assert not any(unsafe for name, unsafe in seen.items() if name != "m2clip.masked_word_loss.default")
