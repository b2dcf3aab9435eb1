"""The contrastive losses on a GPU: errors against fp64, launches of the forward pass, empty batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import DEVICE, loss
from tests.gpu.workloads import BACKENDS, DTYPES, require
from tests.kernels.test_losses import LOSSES, assert_as_accurate, features, layouts, loss_on

on_every_backend = pytest.mark.parametrize("backend", BACKENDS["soft_target_kl"])
SIZES = ((1, 1), (3, 5), (64, 400), (64, 174), (256, 400), (37, 1000), (64, 20_000))


def samples(rows: int, columns: int, dim: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, ...]]:
    """Three draws of features on the GPU, and labels and scale beside them."""
    drawn = (features(rows, columns, dim, seed) for seed in range(3))
    return [
        (v.to(DEVICE, dtype), w.to(DEVICE, dtype), labels.to(DEVICE), scale.to(DEVICE)) for v, w, labels, scale in drawn
    ]


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [512, 7, 33])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cross_entropy_is_as_accurate_as_eager(size, dim, dtype, backend):
    require(backend)
    ours, eager = (loss_on("cosine_cross_entropy", name) for name in (backend, "reference"))
    assert_as_accurate(ours, eager, samples(*size, dim, dtype))


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [512, 33])
@pytest.mark.parametrize("rows", [1, 3, 64, 150, 256])
def test_soft_targets_are_as_accurate_as_eager(rows, dim, dtype, backend):
    require(backend)
    ours, eager = (loss_on("soft_target_kl", name) for name in (backend, "reference"))
    assert_as_accurate(ours, eager, samples(rows, rows, dim, dtype))


@on_every_backend
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["padded rows", "every other", "transposed"])
def test_strided_features(layout, name, backend):
    require(backend)
    strided = [
        (layouts(v)[layout], layouts(w)[layout], labels.repeat_interleave(2)[::2], scale)
        for v, w, labels, scale in samples(24, 24, 65)
    ]
    assert_as_accurate(loss_on(name, backend), loss_on(name, "reference"), strided)


@on_every_backend
@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_has_no_loss(name, backend):
    require(backend)
    work = loss(name, 0, 0 if name == "soft_target_kl" else 7, 16)
    value, *gradients = work.results(work.placed(torch.float32), backend)
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


@on_every_backend
def test_the_forward_pass_of_cross_entropy_is_one_launch(backend):
    require(backend)
    v, w, labels, scale = samples(64, 400, 512)[0]
    v, w, scale = (tensor.requires_grad_() for tensor in (v, w, scale))
    run = loss_on("cosine_cross_entropy", backend)
    run(v, w, labels, scale)  # compiles
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(v, w, labels, scale)
        torch.cuda.synchronize()
    launched = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == 1, launched
