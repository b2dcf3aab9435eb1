"""An infinite or missing number reaches no further through the native kernels than through the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m2clip import kernels
from m2clip.kernels import BranchWeights, MSTAWeights, TEDWeights, TimeLayout
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops.bottleneck import ACTIVATIONS

pytestmark = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")
INFINITE = float("inf")


def values(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 0.5 for shape in shapes]


def assert_no_other_nan(
    call: Callable[..., Tensor], leaves: list[Tensor], changed: int, place: int, gradients: bool = True
) -> None:
    """Neither in the output nor in the gradients is there a NaN where the reference has a number."""
    for value in (INFINITE, -INFINITE, float("nan")):
        found = []
        for backend in ("reference", "native"):
            own = [leaf.clone() for leaf in leaves]
            own[changed].view(-1)[place] = value
            own = [leaf.requires_grad_() for leaf in own]
            y = call(backend, *own)
            found.append([y.detach(), *(torch.autograd.grad(y.sum(), own) if gradients else ())])
        for index, (expected, ours) in enumerate(zip(*found, strict=True)):
            assert not (ours.isnan() & ~expected.isnan()).any(), (value, index)


@pytest.mark.parametrize("grid", [(4, 4), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("place", [0, 2, 4, 6, 8, -1])
def test_taps_of_the_grid(grid: tuple[int, int], place: int) -> None:
    x, *weights = values((6, 1 + grid[0] * grid[1], 24), (16, 24), (16,), (16, 1, 3, 3), (16,), (24, 16), (24,))

    def call(backend: str, x: Tensor, *weights: Tensor) -> Tensor:
        return kernels.ted_adapter(x, TEDWeights(None, BranchWeights(*weights)), 3, grid=grid, backend=backend)

    assert_no_other_nan(call, [x, *weights], changed=3, place=place)


@pytest.mark.parametrize("changed", range(7))
def test_temporal_enhancement(changed: int) -> None:
    shapes = ((6, 5, 24), (16, 24), (16,), (16, 1, 3), (16,), (24, 16), (24,))

    def call(backend: str, x: Tensor, *weights: Tensor) -> Tensor:
        return kernels.ted_adapter(x, TEDWeights(BranchWeights(*weights), None), 3, backend=backend)

    for place in (0, -1):
        assert_no_other_nan(call, values(*shapes), changed, place)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("changed", range(5))
def test_bottlenecks(changed: int, activation: str) -> None:
    def call(backend: str, *leaves: Tensor) -> Tensor:
        return kernels.bottleneck_adapter(*leaves, activation=activation, backend=backend)

    assert_no_other_nan(call, values((6, 24), (16, 24), (16,), (24, 16), (24,)), changed, 0)


@pytest.mark.parametrize("after_up", [False, True])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("changed", [1, 2, 3, 4, 7, 8])
def test_the_output_of_msta(changed: int, joint: bool, after_up: bool) -> None:
    """In its gradients infinities of both signs are summed, in one order or another."""
    x = (2, 13, 24) if joint else (6, 4, 24)
    shapes = (x, (8, 24), (8,), (8, 8), (8,), (24, 8), (24,), (24, 1, 3), (24,))

    def call(backend: str, x: Tensor, *weights: Tensor) -> Tensor:
        packed = MSTAWeights(*weights, after_up=after_up)
        return kernels.msta_adapter(x, torch.zeros_like(x), packed, TimeLayout(3, joint), scale=0.3, backend=backend)

    for place in (0, -1):
        assert_no_other_nan(call, values(*shapes), changed, place, gradients=False)


@pytest.mark.parametrize("name", ["cosine_cross_entropy", "soft_target_kl"])
@pytest.mark.parametrize("changed", range(3))
def test_losses(changed: int, name: str) -> None:
    def call(backend: str, v: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        return getattr(kernels, name)(v, w, torch.arange(5), scale.sum(), backend=backend)

    assert_no_other_nan(call, values((5, 24), (5, 24), (1,)), changed, 0)
