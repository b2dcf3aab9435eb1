"""Memory of the adapters on a GPU, and tensors of more than 2^31 elements."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adapter_variants import Case, Problem, authors_variant, m2clip_variant
from benchmarks.memory import peak_bytes
from benchmarks.workloads import DEVICE, bottleneck, ted, ted_weights
from m2clip import kernels
from tests.gpu.workloads import BACKENDS, require

GB = 2**30
AUTHORS_SHARE = 0.5  # of the memory that the authors' formulation takes in eager PyTorch


@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
@pytest.mark.parametrize("width", [384, 64])
def test_half_the_memory_of_the_authors_code(width, backend):
    require(backend)
    problem = Problem(Case("", 8, 8, (14, 14), 768, width, torch.bfloat16), DEVICE)
    peaks = []
    for build in (authors_variant, lambda problem: m2clip_variant(problem, backend)):
        variant = build(problem)
        peaks.append(peak_bytes(variant.backward, variant.backward, DEVICE))
        del variant
    assert peaks[1] <= AUTHORS_SHARE * peaks[0], f"{peaks[1] / peaks[0]:.2f} of the authors'"


def needs(gigabytes: int) -> None:
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    if total < gigabytes * GB:
        pytest.skip(f"it takes {gigabytes} GB of GPU memory, and there are {total / GB:.0f}")


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

    def run(rows: slice) -> list[torch.Tensor]:
        own = x[rows].detach().requires_grad_()
        y = kernels.ted_adapter(own, ted_weights(weights, "both"), frames, grid=grid, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [own, *weights.values()], dy[rows])]

    y, dx, *gradients = run(slice(None))
    middle = clips // 2 * frames
    parts = [run(slice(0, middle)), run(slice(middle, None))]
    for whole, place in ((y, 0), (dx, 1)):
        for rows, part in (
            (slice(0, frames), parts[0][place][:frames]),
            (slice(-frames, None), parts[1][place][-frames:]),
        ):
            torch.testing.assert_close(whole[rows], part, rtol=2e-2, atol=2e-2)
    for index, whole in enumerate(gradients, start=2):
        total = parts[0][index].double() + parts[1][index].double()
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

    def run(part: slice) -> list[torch.Tensor]:
        own = x[part].detach().requires_grad_()
        y = kernels.bottleneck_adapter(own, *weights, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [own], dy[part])]

    whole, last = run(slice(None)), run(slice(-1000, None))
    for found, expected in zip(whole, last, strict=True):
        torch.testing.assert_close(found[-1000:], expected, rtol=2e-2, atol=2e-2)
