"""bottleneck_adapter on the native backend against the reference in fp64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from m2clip import kernels
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops.bottleneck import ACTIVATIONS
from tests.kernels.proof import assert_proven

pytestmark = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")

SHAPES = (((3, 5, 24), 16), ((7, 33), 37), ((40,), 9), ((0, 4, 8), 8), ((2300, 16), 12))


def inputs(shape: tuple[int, ...], width: int) -> list[Tensor]:
    """x, down_weight, down_bias, up_weight, up_bias and the output's gradient, fp64."""
    generator = torch.Generator().manual_seed(0)
    dim = shape[-1]
    shapes = (shape, (width, dim), (width,), (dim, width), (dim,), shape)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in shapes]


def run(
    tensors: list[Tensor], dtype: torch.dtype, backend: str, of=Tensor.detach, strided: bool = False, **options
) -> list[Tensor]:
    *leaves, dy = (of(tensor).to(dtype) for tensor in tensors)
    if strided:
        leaves[0], dy = (t.transpose(0, -1).contiguous().transpose(0, -1) for t in (leaves[0], dy))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = kernels.bottleneck_adapter(*leaves, backend=backend, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(("shape", "width"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_is_as_exact_as_eager(activation, shape, width, dtype):
    tensors = inputs(shape, width)
    for options in ({}, {"scale": 0.3}, {"residual": False, "scale": 2.0}, {"strided": True}):
        assert_proven(partial(run, tensors, activation=activation, **options), dtype, "native")


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
def test_activations_over_their_whole_range(activation, name):
    before = native.extension.instruction_set()
    if not native.extension.select_instruction_set(name):
        pytest.skip(f"this processor has no {name}")
    try:
        for dtype in (torch.float32, torch.bfloat16):
            h = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([-0.0, 0.0, 1e-30, -1e-30, 500.0, -500.0])])
            h = h.to(dtype)[:, None]
            exact = h.double().requires_grad_()
            value = ACTIVATIONS[activation](exact)
            (slope,) = torch.autograd.grad(value.sum(), exact)
            g, again, dh = (torch.empty_like(h) for _ in range(3))
            native.activate(activation, h, g)
            native.activate_backward(activation, h, torch.ones_like(h), again, dh)
            assert torch.equal(g, again)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(g.double(), value.detach(), rtol=2 * eps, atol=1e-6)
            torch.testing.assert_close(dh.double(), slope, rtol=2 * eps, atol=1e-6)
    finally:
        native.extension.select_instruction_set(before)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_not_a_number_and_infinity(activation):
    h = torch.tensor([float("nan"), float("inf")])[:, None]
    g = torch.empty_like(h)
    native.activate(activation, h, g)
    assert g[0].isnan() and g[1] == float("inf")


def test_bits_do_not_depend_on_the_run_or_on_the_threads():
    tensors = inputs((900, 32), 64)
    first = run(tensors, torch.float32, "native")
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, run(tensors, torch.float32, "native"), strict=True))
    h, dg = torch.randn(2, 3000, 64, generator=torch.Generator().manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            g, dh = torch.empty_like(h), torch.empty_like(h)
            sums = native.activate_backward("gelu", h, dg, g, dh)
            results.append((g, dh, sums))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_only_what_is_needed_gets_a_gradient():
    tensors = [tensor.float() for tensor in inputs((4, 6), 3)[:-1]]
    for trained in ((), (0,), (1, 2, 3, 4), (0, 1, 2, 3, 4)):
        leaves = [tensor.clone().requires_grad_(index in trained) for index, tensor in enumerate(tensors)]
        y = kernels.bottleneck_adapter(*leaves, backend="native")
        assert y.requires_grad == bool(trained)
        if trained:
            y.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index in trained for index in range(5)]
