"""What can be measured: a shape, every operation on it, and kernels whose configuration can be chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..operands import Branches, BranchWeights, Geometry, MSTAWeights, TEDWeights, TimeLayout
from ..ops.bottleneck import bottleneck_adapter
from ..ops.gelu import bias_gelu
from ..ops.losses import cosine_cross_entropy, soft_target_kl
from ..ops.msta import msta_adapter
from ..ops.ted import ted_adapter


class Shape(NamedTuple):
    """One shape to measure for: clips of T frames, D token width, R bottleneck width."""

    dim: int
    width: int
    frames: int
    grid: tuple[int, int]
    clips: int
    dtype: torch.dtype
    classes: int = 400  # of the losses

    @property
    def tokens(self) -> int:
        """Of a frame, the class token included."""
        return self.grid[0] * self.grid[1] + 1


class KernelCandidates(NamedTuple):
    """A kernel and the configurations that it can be launched with by `run`."""

    kernel: str  # what its host function asks for, and with which arguments
    arguments: tuple[Any, ...]
    rule: Any  # the configuration of the static rule
    others: list[Any]
    run: Callable[[Any], object]


def adapter_inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Branches, Geometry]:
    """Tokens (B*T, L, D) and an adapter with separate projections for them."""

    def values(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=shape.dtype)

    def branch(*taps: int) -> list[Tensor]:
        down, up = values(shape.width, shape.dim) * shape.dim**-0.5, values(shape.dim, shape.width) * shape.width**-0.5
        return [down, values(shape.width), values(shape.width, *taps), values(shape.width), up, values(shape.dim)]

    x = values(shape.clips * shape.frames, shape.tokens, shape.dim)
    return x, Branches(branch(1, 3), branch(1, 3, 3)), Geometry(shape.frames, shape.grid, True)


def operations(shape: Shape, device: torch.device) -> dict[str, tuple[Callable[..., Tensor], list[Tensor], int]]:
    """Every operation that has several backends: a call of it, which takes the inputs and `backend`; the inputs; and
    the width its winner is kept by."""

    def values(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=shape.dtype)

    def ted(x: Tensor, *weights: Tensor, backend: str) -> Tensor:
        branches = TEDWeights(BranchWeights(*weights[:6]), BranchWeights(*weights[6:]))
        return ted_adapter(x, branches, shape.frames, grid=shape.grid, backend=backend)

    dim, width = shape.dim, shape.width
    frames = shape.clips * shape.frames
    projections = [values(width, dim) * dim**-0.5, values(width), values(dim, width) * width**-0.5, values(dim)]
    weights = [
        tensor
        for taps in ((1, 3), (1, 3, 3))
        for tensor in (*projections[:2], values(width, *taps), values(width), *projections[2:])
    ]
    videos, classes = values(2 * shape.clips, 512), values(shape.classes, 512)
    labels = torch.arange(2 * shape.clips, device=device) % shape.classes
    scale = torch.tensor(100.0, device=device)

    def cross_entropy(v: Tensor, w: Tensor, scale: Tensor, *, backend: str) -> Tensor:
        return cosine_cross_entropy(v, w, labels, scale, backend=backend)

    def contrast(v: Tensor, w: Tensor, scale: Tensor, *, backend: str) -> Tensor:
        return soft_target_kl(v, w, labels, scale, backend=backend)

    def msta(x: Tensor, base: Tensor, *weights: Tensor, backend: str) -> Tensor:
        fields: dict[str, Any] = dict(zip(MSTAWeights._fields, weights, strict=False))
        time = TimeLayout(shape.frames)
        return msta_adapter(x, base, MSTAWeights(**fields, after_up=dim % width > 0), time, backend=backend)

    tokens = values(frames, shape.tokens, dim)
    shared = [values(width, width) * width**-0.5, values(width)]
    msta_weights = [*projections[:2], *shared, *projections[2:], values(dim, 1, 3), values(dim)]
    return {
        "ted_adapter": (ted, [tokens, *weights], width),
        "bottleneck_adapter": (bottleneck_adapter, [tokens, *projections], width),
        "msta_adapter": (msta, [tokens, values(*tokens.shape), *msta_weights], width),
        "bias_gelu": (bias_gelu, [values(frames, shape.tokens, 4 * dim), values(4 * dim)], 0),
        "cosine_cross_entropy": (cross_entropy, [videos, classes, scale], 0),
        "soft_target_kl": (contrast, [videos, values(2 * shape.clips, 512), scale], 0),
    }
