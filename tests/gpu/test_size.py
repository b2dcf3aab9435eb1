"""Memory of the adapters on a GPU, and tensors of more than 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.adapter_variants import Case, Problem
from benchmarks.memory import peak_bytes
from benchmarks.workloads import DEVICE, bottleneck, ted, ted_weights
from m2clip import kernels
from tests.gpu.workloads import BACKENDS, require
from tests.kernels.proof import assert_as_exact

GB = 2**30
AUTHORS_SHARE = 0.5  # of the memory that the authors' formulation takes in eager PyTorch


@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
@pytest.mark.parametrize("width", [384, 64])
def test_half_the_memory_of_the_authors_code(width, backend):
    require(backend)
    problem = Problem(Case("", 8, 8, (14, 14), 768, width, "bfloat16"), DEVICE)
    peaks = []
    for build in (problem.authors, lambda: problem.on(backend)):
        variant = build()
        peaks.append(peak_bytes(variant.backward, variant.backward, DEVICE))
        del variant
    assert peaks[1] <= AUTHORS_SHARE * peaks[0], f"{peaks[1] / peaks[0]:.2f} of the authors'"


def needs(gigabytes: int) -> None:
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    if total < gigabytes * GB:
        pytest.skip(f"it takes {gigabytes} GB of GPU memory, and there are {total / GB:.0f}")


def assert_edges_proven(run: Callable[..., list[torch.Tensor]], y: torch.Tensor, dx: torch.Tensor, rows: int) -> None:
    """The first and the last rows of an output and of its input's gradient are those of the reference on them alone."""
    for edge in (slice(0, rows), slice(-rows, None)):
        exact, eager = (run(edge, "reference", dtype)[:2] for dtype in (torch.float64, torch.bfloat16))
        assert_as_exact(exact, eager, [y[edge], dx[edge]])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
def test_ted_adapter_on_more_than_two_billion_elements(backend):
    require(backend)
    needs(70)
    frames, grid, dim, width = 8, (14, 14), 768, 384
    clips = 2**31 // (frames * 197 * dim) + 2
    leaves = ted(0, frames, grid, dim, width).placed(torch.bfloat16)
    weights = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name != "x"}
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, dy = (
        torch.randn(clips * frames, 197, dim, generator=generator, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(2)
    )
    assert x.numel() > 2**31

    def run(rows: slice, backend: str = backend, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
        own = x[rows].detach().to(dtype).requires_grad_()
        taken = {name: leaf.to(dtype) for name, leaf in weights.items()}
        y = kernels.ted_adapter(own, ted_weights(taken, "both"), frames, grid=grid, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [own, *weights.values()], dy[rows].to(dtype))]

    y, dx, *gradients = run(slice(None))
    assert_edges_proven(run, y, dx, frames)
    middle = clips // 2 * frames
    halves = [run(slice(0, middle))[2:], run(slice(middle, None))[2:]]
    for whole, first, second in zip(gradients, *halves, strict=True):
        total = first.double() + second.double()
        assert ((whole - total).norm() / total.norm()).item() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS["bottleneck_adapter"])
def test_bottleneck_adapter_on_more_than_two_billion_elements(backend):
    require(backend)
    needs(50)
    dim, width = 768, 64
    rows = 2**31 // dim + 1000
    (*weights,) = list(bottleneck((0, dim), width).placed(torch.bfloat16).values())[1:]
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, dy = (torch.randn(rows, dim, generator=generator, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    assert x.numel() > 2**31

    def run(part: slice, backend: str = backend, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
        own = x[part].detach().to(dtype).requires_grad_()
        y = kernels.bottleneck_adapter(own, *(weight.to(dtype) for weight in weights), backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [own], dy[part].to(dtype))]

    assert_edges_proven(run, *run(slice(None)), rows=1000)
