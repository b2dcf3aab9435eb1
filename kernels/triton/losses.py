"""The contrastive losses on the Triton backend: one launch forward, one backward; kernels in loss_kernels.py.

Features come in fp32, fp16 or bf16, both in one dtype, and their gradients leave in it; everything between is fp32. The
logits of many classes are never in memory together: the backward pass makes them once more, a tile at a time. A target
that is no class makes the loss and the gradients that it enters NaN: to raise an error would mean to wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .device import Config, config_or_rule
from .loss_backward_kernels import GradientBlocks, loss_backward_kernel
from .loss_kernels import PAD, ROW_PARTS, SOFT_PARTS, cross_entropy_kernel, soft_target_kernel

KEPT_DOTS = 2**20  # dot products that may be kept for the backward pass: about 4 MB
MANY = 1024  # columns from which on large tiles fill a GPU
_PROGRAMS = 512  # that occupy the largest GPUs; with more of them a program takes several tiles
_LEAST_TILES = 16  # of the other side that a program sums before the sum is split

_DEFAULT_STREAM = 0  # as CUDA numbers it

_arrivals: dict[torch.device, Tensor] = {}


class LossConfig(NamedTuple):
    """Tile of cosines, features of it at a time, pipeline stages, warps."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int


class GradientConfig(NamedTuple):
    """Tile of slopes (own side, other side), columns of the gradient, features of a dot product, stages, warps."""

    own: int
    other: int
    width: int
    depth: int
    stages: int
    warps: int


def loss_config(dim: int, columns: int, dtype: torch.dtype) -> LossConfig:
    """The static rule: where there are few columns, tiles so small that a batch of 64 is spread over half of a GPU.

    Products of fp32 features are no work for tensor cores, and larger tiles would not fit into the registers.
    """
    depth = min(max(triton.next_power_of_2(dim), 16), 64)
    if columns <= MANY:
        return LossConfig(16, 32, depth, 3, 4)
    if dtype == torch.float32:
        return LossConfig(32, 64, min(depth, 32), 2, 4)
    return LossConfig(64, 64, depth, 3, 8)


def loss_candidates(dim: int, columns: int, dtype: torch.dtype) -> list[LossConfig]:
    """What a tuner may try in place of the rule's, which is the first."""
    rule = loss_config(dim, columns, dtype)
    if columns <= MANY:
        others = [rule._replace(columns=16), rule._replace(columns=64), rule._replace(stages=2)]
    else:
        others = [rule._replace(columns=32), rule._replace(stages=4)]
    return [rule, *others]


def gradient_config(dim: int, columns: int, dtype: torch.dtype) -> GradientConfig:
    """The static rule: few columns are split over many programs by the features, for many a dot product is not made
    anew too often."""
    width = max(triton.next_power_of_2(dim), 16)
    if columns <= MANY:
        return GradientConfig(16, 64, min(width, 32), min(width, 64), 3, 4)
    if dtype == torch.float32:
        return GradientConfig(32, 32, min(width, 128), min(width, 32), 2, 8)
    return GradientConfig(64, 64, min(width, 128), min(width, 64), 2, 8)


def gradient_candidates(dim: int, columns: int, dtype: torch.dtype) -> list[GradientConfig]:
    """What a tuner may try in place of the rule's, which is the first."""
    rule = gradient_config(dim, columns, dtype)
    return [rule, rule._replace(own=32, warps=4), rule._replace(other=32), rule._replace(stages=1)]


def cosine_cross_entropy(
    v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor, config: LossConfig | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The loss, 0-d fp32, and what its backward pass takes; NaN where a target is no class."""
    saved, rows, columns = cosine_cross_entropy_saved(v, w), v.shape[0], w.shape[0]
    loss = v.new_empty((), dtype=torch.float32)
    if rows == 0:
        return loss.zero_(), [tensor.zero_() for tensor in saved]
    config = config or _config_of("loss", loss_config, v, columns)
    row_tiles, column_tiles = triton.cdiv(rows, config.rows), max(triton.cdiv(columns, config.columns), 1)
    tiles = triton.cdiv(column_tiles * row_tiles, _PROGRAMS)
    splits = triton.cdiv(column_tiles, tiles)
    cross_entropy_kernel[row_tiles * splits,](
        v.contiguous(),
        w.contiguous(),
        targets.contiguous(),
        logit_scale,
        loss,
        *saved,
        loss.new_empty(ROW_PARTS.value * splits * rows),
        _arrived(v),
        rows,
        columns,
        v.shape[1],
        tiles,
        KEEP=_is_kept(v, w),
        **_tile(config),
    )
    return loss, saved


def cosine_cross_entropy_saved(v: Tensor, w: Tensor) -> list[Tensor]:
    """Tensors of the shapes of those that the backward pass takes: dot products, if they are kept, and the state."""
    return _saved(v, w, 3 * v.shape[0] + w.shape[0] + 1)


def cosine_cross_entropy_backward(
    gradient: Tensor,
    v: Tensor,
    w: Tensor,
    saved: list[Tensor],
    targets: Tensor,
    logit_scale: Tensor,
    need_v: bool,
    need_w: bool,
    config: GradientConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v, w (both empty where not needed) and the scale."""
    return _gradients(gradient, v, w, saved, targets, logit_scale, False, need_v, need_w, config)


def soft_target_kl(
    v: Tensor,
    w: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    target_scale: float,
    config: LossConfig | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The loss, 0-d fp32, and what its backward pass takes."""
    saved, rows = soft_target_kl_saved(v, w), v.shape[0]
    loss = v.new_empty((), dtype=torch.float32)
    if rows == 0:
        return loss.zero_(), [tensor.zero_() for tensor in saved]
    config = config or _config_of("loss", loss_config, v, rows)
    row_tiles, column_tiles = triton.cdiv(rows, config.rows), triton.cdiv(rows, config.columns)
    soft_target_kernel[row_tiles * column_tiles,](
        v.contiguous(),
        w.contiguous(),
        labels.contiguous(),
        logit_scale,
        loss,
        *saved,
        loss.new_empty(SOFT_PARTS.value * (row_tiles + column_tiles) * rows),
        loss.new_empty(column_tiles * rows),
        _arrived(v),
        float(target_scale),
        rows,
        v.shape[1],
        KEEP=_is_kept(v, w),
        **_tile(config),
    )
    return loss, saved


def soft_target_kl_saved(v: Tensor, w: Tensor) -> list[Tensor]:
    """Tensors of the shapes of those that the backward pass takes: dot products, if they are kept, and the state."""
    return _saved(v, w, 8 * v.shape[0] + 1)


def soft_target_kl_backward(
    gradient: Tensor,
    v: Tensor,
    w: Tensor,
    saved: list[Tensor],
    labels: Tensor,
    logit_scale: Tensor,
    target_scale: float,
    need_v: bool,
    need_w: bool,
    config: GradientConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v, w (both empty where not needed) and the scale."""
    return _gradients(gradient, v, w, saved, labels, logit_scale, True, need_v, need_w, config)


def _gradients(
    gradient: Tensor,
    v: Tensor,
    w: Tensor,
    saved: list[Tensor],
    labels: Tensor,
    logit_scale: Tensor,
    soft: bool,
    need_v: bool,
    need_w: bool,
    config: GradientConfig | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of soft targets, or of classes."""
    (rows, dim), columns = v.shape, w.shape[0]
    outputs = [torch.empty_like(x) if need else x.new_empty(0) for x, need in ((v, need_v), (w, need_w))]
    if rows == 0:
        return outputs[0].zero_(), outputs[1].zero_(), torch.zeros_like(gradient)
    slope = saved[1][3 * rows + columns]
    if not need_v and not need_w:
        return outputs[0], outputs[1], gradient * slope
    config = config or _config_of("loss_gradient", gradient_config, v, columns)
    sides = [_Side.of(x, other, need, config) for x, other, need in ((v, w, need_v), (w, v, need_w))]
    dscale = torch.empty_like(gradient)
    written = [side.written(output) for side, output in zip(sides, outputs, strict=True)]
    loss_backward_kernel[sides[0].programs + sides[1].programs,](
        gradient,
        (v.contiguous(), w.contiguous()),
        tuple(saved),
        labels.contiguous(),
        logit_scale,
        tuple(written),
        dscale,
        rows,
        columns,
        dim,
        sides[0].programs,
        sides[0].tiles,
        sides[1].tiles,
        **gradient_options(soft, _is_kept(v, w), v.dtype, config),
    )
    for side, output, result in zip(sides, outputs, written, strict=True):
        if side.splits > 1:
            result = result.sum(dim=0)
        if result is not output:
            output.copy_(result)
    return outputs[0], outputs[1], dscale


def gradient_options(soft: bool, kept: bool, dtype: torch.dtype, config: GradientConfig) -> dict[str, Any]:
    """The backward kernel's constant, and the launch's own."""
    precision = "ieee" if dtype == torch.float32 else "tf32"
    blocks = GradientBlocks(soft, kept, precision, config.own, config.other, config.width, config.depth)
    return {"BLOCKS": blocks, "num_stages": config.stages, "num_warps": config.warps}


class _Side(NamedTuple):
    """How the gradient of one side's features is split over programs; none where it is not needed."""

    programs: int
    splits: int  # of the other side's features; each split leaves a sum of its own
    tiles: int  # that a program goes over

    @classmethod
    def of(cls, x: Tensor, other: Tensor, needed: bool, config: GradientConfig) -> _Side:
        if not needed:
            return cls(0, 1, 0)
        programs = triton.cdiv(x.shape[0], config.own) * triton.cdiv(x.shape[1], config.width)
        tiles = triton.cdiv(other.shape[0], config.other)
        splits = max(1, min(_PROGRAMS // max(programs, 1), tiles // _LEAST_TILES))
        tiles = triton.cdiv(tiles, splits)
        splits = triton.cdiv(triton.cdiv(other.shape[0], config.other), tiles) if splits > 1 else 1
        return cls(programs * splits, splits, tiles)

    def written(self, output: Tensor) -> Tensor:
        """What the kernel writes: the contiguous gradient, or a sum of every split."""
        if self.splits > 1:
            return output.new_empty((self.splits, *output.shape), dtype=torch.float32)
        return output if output.is_contiguous() else output.new_empty(output.shape)


def _config_of(kernel: str, rule: Callable[[int, int, torch.dtype], Config], v: Tensor, columns: int) -> Config:
    """What was measured on the device of v, or else the static rule's."""
    asked = question(v, columns)
    return config_or_rule(kernel, rule(*asked), v.device, *asked)


def question(v: Tensor, columns: int) -> tuple[int, int, torch.dtype]:
    """Arguments of the static rules for features (B, D): there is one class of few columns and one of many."""
    return v.shape[1], MANY if columns <= MANY else MANY + 1, v.dtype


def _is_kept(v: Tensor, w: Tensor) -> bool:
    return v.shape[0] * w.shape[0] <= KEPT_DOTS


def _saved(v: Tensor, w: Tensor, state: int) -> list[Tensor]:
    stride = (w.shape[0] + PAD.value - 1) // PAD.value * PAD.value  # as in the kernels
    dots = (v.shape[0], stride) if _is_kept(v, w) else (0,)
    return [v.new_empty(shape, dtype=torch.float32) for shape in (dots, (state,))]


def _tile(config: LossConfig) -> dict[str, Any]:
    return {
        "BLOCK_M": config.rows,
        "BLOCK_N": config.columns,
        "BLOCK_K": config.depth,
        "num_stages": config.stages,
        "num_warps": config.warps,
    }


def _arrived(v: Tensor) -> Tensor:
    """A counter at zero, where the kernel leaves it.

    On the default stream one of each device is used again and again, which saves a launch: work there runs in order,
    is never captured into a CUDA graph and is given no memory of a graph's pool. Elsewhere every call has its own.
    """
    if not v.is_cuda or torch.cuda.current_stream(v.device).cuda_stream != _DEFAULT_STREAM:
        return torch.zeros(1, dtype=torch.int32, device=v.device)
    if v.device not in _arrivals:
        _arrivals[v.device] = torch.zeros(1, dtype=torch.int32, device=v.device)
    return _arrivals[v.device]
