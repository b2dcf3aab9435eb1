"""Calls of every operation on any shape, dtype, backend and device, with the same random numbers each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from m2clip import kernels
from m2clip.kernels.gelu_ops import bias_gelu
from tests.kernels.proof import assert_as_exact
from tests.kernels.test_native_ted import ted_weights
from tests.kernels.test_native_ted import tensors as ted_tensors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = {
    "ted_adapter": ("triton", "cuda"),
    "bottleneck_adapter": ("triton",),
    "bias_gelu": ("triton",),
    "cosine_cross_entropy": ("triton",),
    "soft_target_kl": ("triton",),
}
Leaves = Mapping[str, Tensor]


class Workload(NamedTuple):
    """One call of an operation: fp64 leaves on the CPU, of which the first may be strided, and what takes them."""

    op: str
    name: str
    leaves: dict[str, Tensor]
    call: Callable[[Leaves, str], Tensor]
    strided: bool = False

    def placed(self, dtype: torch.dtype, device: torch.device = DEVICE) -> dict[str, Tensor]:
        """Leaves in a dtype; a loss's scale stays fp32, and its labels what they are."""
        placed = {
            name: leaf.to(device, torch.float32 if leaf.dim() == 0 else dtype)
            if leaf.is_floating_point()
            else leaf.to(device)
            for name, leaf in self.leaves.items()
        }
        if self.strided:
            first = next(iter(placed))
            placed[first] = _transposed_in_memory(placed[first])
        return placed

    def slope(self, y: Tensor) -> Tensor:
        """Gradient of an output; the same values for every backend."""
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.device, y.dtype)
        return _transposed_in_memory(values) if self.strided else values

    def results(self, leaves: Leaves, backend: str, slope: Tensor | None = None) -> list[Tensor]:
        """The output and the gradients of all leaves; without a slope given it is made on the CPU."""
        own = {name: leaf.detach().requires_grad_(leaf.is_floating_point()) for name, leaf in leaves.items()}
        y = self.call(own, backend)
        trained = [leaf for leaf in own.values() if leaf.requires_grad]
        return [y.detach(), *torch.autograd.grad(y, trained, self.slope(y) if slope is None else slope)]


def in_double(leaves: Leaves) -> dict[str, Tensor]:
    """The same values in double precision."""
    return {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in leaves.items()}


def _transposed_in_memory(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def ted(
    clips: int,
    frames: int,
    grid: tuple[int, int],
    dim: int,
    width: int,
    layout: str = "both",
    class_token: bool = True,
    sequential: bool = False,
    strided: bool = False,
) -> Workload:
    """ted_adapter; layout: both, shared, temporal or difference."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips * frames, grid[0] * grid[1] + class_token, dim, generator=generator, dtype=torch.float64)
    leaves = {"x": x, **ted_tensors(dim, width, layout, generator)}
    for name in leaves:
        if "up_weight" in name:
            leaves[name] = leaves[name] * width**-0.5

    def call(leaves: Leaves, backend: str) -> Tensor:
        x, *_ = leaves.values()
        weights = ted_weights(dict(leaves), layout)
        options = {"grid": grid, "class_token": class_token, "sequential": sequential}
        return kernels.ted_adapter(x, weights, frames, backend=backend, **options)

    name = f"B={clips} T={frames} {grid[0]}x{grid[1]} D={dim} R={width} {layout}"
    return Workload("ted_adapter", name, leaves, call, strided)


def bottleneck(
    shape: tuple[int, ...],
    width: int,
    activation: str = "gelu",
    scale: float = 1.0,
    residual: bool = True,
    strided: bool = False,
) -> Workload:
    generator, dim = torch.Generator().manual_seed(0), shape[-1]
    sizes = {
        "x": shape,
        "down_weight": (width, dim),
        "down_bias": (width,),
        "up_weight": (dim, width),
        "up_bias": (dim,),
    }
    leaves = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("down_weight", "up_weight"):
        leaves[name] = leaves[name] * leaves[name].shape[1] ** -0.5
    options = {"activation": activation, "scale": scale, "residual": residual}

    def call(leaves: Leaves, backend: str) -> Tensor:
        return kernels.bottleneck_adapter(*leaves.values(), backend=backend, **options)

    return Workload("bottleneck_adapter", f"{shape} R={width} {activation}", leaves, call, strided)


def gelu(shape: tuple[int, ...], activation: str = "quick_gelu", strided: bool = False) -> Workload:
    generator = torch.Generator().manual_seed(0)
    h, bias = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, shape[-1:]))

    def call(leaves: Leaves, backend: str) -> Tensor:
        return bias_gelu(*leaves.values(), activation, backend=backend)

    return Workload("bias_gelu", f"{shape} {activation}", {"h": 2 * h, "bias": bias}, call, strided)


def loss(op: str, rows: int, columns: int, dim: int, strided: bool = False) -> Workload:
    """cosine_cross_entropy or soft_target_kl on features of different lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = (0.1 + 4 * torch.rand(size, 1, generator=generator) for size in (rows, columns))
    v, w = (torch.randn(len(length), dim, generator=generator).double() * length for length in lengths)
    labels = torch.randint(0, max(columns, 1), (rows,), generator=generator)

    def call(leaves: Leaves, backend: str) -> Tensor:
        return getattr(kernels, op)(*leaves.values(), backend=backend)

    leaves = {"v": v, "w": w, "labels": labels, "logit_scale": torch.tensor(30.0, dtype=torch.float64)}
    return Workload(op, f"{rows}x{columns} D={dim}", leaves, call, strided)


SMALL = {
    "ted_adapter": partial(ted, 2, 3, (5, 4), 48, 32),
    "bottleneck_adapter": partial(bottleneck, (2, 30, 48), 32),
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
    leaves = work.placed(dtype)
    exact = work.results(in_double(leaves), "reference")
    assert_as_exact(exact, work.results(leaves, "reference"), work.results(leaves, backend))
