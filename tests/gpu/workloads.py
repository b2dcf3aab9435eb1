"""Which backends run an operation on a GPU, small calls of all of them, and the proof of a call."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.workloads import DEVICE, Workload, bottleneck, gelu, in_double, loss, msta, ted
from m2clip import kernels
from m2clip.kernels import TimeLayout
from tests.kernels.proof import assert_as_exact

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = {
    "ted_adapter": ("triton", "cuda"),
    "bottleneck_adapter": ("triton",),
    "msta_adapter": ("triton",),
    "bias_gelu": ("triton",),
    "cosine_cross_entropy": ("triton",),
    "soft_target_kl": ("triton",),
}

SMALL = {
    "ted_adapter": partial(ted, 2, 3, (5, 4), 48, 64),
    "bottleneck_adapter": partial(bottleneck, (2, 30, 48), 32),
    "msta_adapter": partial(msta, (6, 10, 48), 16, TimeLayout(3)),
    "bias_gelu": partial(gelu, (2, 30, 48)),
    "cosine_cross_entropy": partial(loss, "cosine_cross_entropy", 16, 40, 64),
    "soft_target_kl": partial(loss, "soft_target_kl", 24, 24, 64),
}
# One of everything: what does not depend on the shape is tested on these.
SMALL_CALLS = [pytest.param(SMALL[op], backend, id=f"{op}-{backend}") for op in SMALL for backend in BACKENDS[op]]


def require(backend: str) -> None:
    """Skip, with the reason, where this installation has no such backend."""
    state = kernels.backend_states()[backend]
    if not state.available:
        pytest.skip(state.reason)


def assert_proven(work: Workload, backend: str, dtype: torch.dtype) -> None:
    """Output and gradients are as close to fp64 as those of eager PyTorch in the same dtype."""
    require(backend)
    leaves = work.placed(dtype, DEVICE)
    exact = work.results(in_double(leaves), "reference")
    assert_as_exact(exact, work.results(leaves, "reference"), work.results(leaves, backend))
