"""The Triton kernels of bias_gelu against the reference in fp64, and the operator around them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from m2clip import kernels
from m2clip.kernels.ops.gelu import GELUS
from m2clip.kernels.triton import gelu
from tests.kernels.proof import assert_operator_is_sound, assert_proven

SHAPES = ((3, 5, 37), (40,), (0, 8), (7, 1), (70, 64), (2, 33, 700))


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """h, bias and the output's gradient, fp64."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64) * 2 for size in (shape, shape[-1:], shape)]


def run(
    tensors: list[Tensor], dtype: torch.dtype, backend: str, activation: str, of=Tensor.detach, strided: bool = False
) -> list[Tensor]:
    h, bias, dg = (of(tensor).to(dtype) for tensor in tensors)
    if strided:
        h, dg = (tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (h, dg))
    leaves = [h.requires_grad_(), bias.requires_grad_()]
    g = kernels.bias_gelu(*leaves, activation, backend=backend)
    return [g.detach(), *torch.autograd.grad(g, leaves, dg)]


@pytest.mark.parametrize("activation", GELUS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_triton_is_as_exact_as_eager(activation, shape, dtype, strided):
    assert_proven(partial(run, inputs(shape), activation=activation, strided=strided), dtype, "triton")


@pytest.mark.parametrize("config", gelu.gelu_candidates(96, 4), ids=str)
def test_every_candidate_gives_the_same(config):
    h, bias, dg = (tensor.float() for tensor in inputs((90, 96)))
    expected = gelu.forward(h, bias, "gelu"), *gelu.backward(dg, h, bias, "gelu", True, True)
    found = gelu.forward(h, bias, "gelu", config), *gelu.backward(dg, h, bias, "gelu", True, True, config)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", GELUS)
def test_values_far_out(activation):
    h = torch.tensor([-500.0, -30.0, -1e-30, -0.0, 1e-30, 30.0, 500.0, float("inf"), float("nan")])[:, None]
    g = kernels.bias_gelu(h, torch.zeros(1), activation, backend="triton")
    expected = kernels.bias_gelu(h.double(), torch.zeros(1), activation, backend="reference")
    torch.testing.assert_close(g.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-30)


def test_a_bias_of_another_dtype_keeps_it():
    h, bias, dg = inputs((6, 20))
    h, bias = h.half().requires_grad_(), bias.float().requires_grad_()
    g = kernels.bias_gelu(h, bias, backend="triton")
    dh, dbias = torch.autograd.grad(g, (h, bias), dg.half())
    assert (g.dtype, dh.dtype, dbias.dtype) == (torch.float16, torch.float16, torch.float32)


def test_only_what_is_needed_gets_a_gradient():
    for trained in ((), (0,), (1,), (0, 1)):
        leaves = [tensor.float().requires_grad_(i in trained) for i, tensor in enumerate(inputs((6, 20))[:2])]
        g = kernels.bias_gelu(*leaves, backend="triton")
        assert g.requires_grad == bool(trained)
        if trained:
            g.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i in trained for i in range(2)]


def test_nothing_wide_but_the_input_is_kept():
    h, bias = torch.randn(6, 20, requires_grad=True), torch.randn(20)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        kernels.bias_gelu(h, bias, backend="triton")
    assert [tensor.data_ptr() for tensor in saved] == [h.data_ptr(), bias.data_ptr()]


def test_opcheck():
    arguments = (torch.randn(5, 12), torch.randn(12), "quick_gelu", "triton")
    assert_operator_is_sound("bias_gelu", arguments, ([True, True], [True, False], [False, True]))


@pytest.mark.slow
def test_compiled_equals_eager_without_a_graph_break():
    tensors = [tensor.float() for tensor in inputs((5, 12))]
    eager = run(tensors, torch.float32, "triton", "gelu")
    call = torch.compile(kernels.bias_gelu, fullgraph=True, backend="aot_eager")
    h, bias = (tensor.requires_grad_() for tensor in tensors[:2])
    g = call(h, bias, "gelu", backend="triton")
    found = [g.detach(), *torch.autograd.grad(g, (h, bias), tensors[2])]
    assert all(torch.equal(a, b) for a, b in zip(found, eager, strict=True))
