"""msta_adapter on the Triton backend: a launch each for two projections with ReLU and for all that follows them.

The convolution over frames stands in the epilogue of the up-projection, which finds its hidden values in the cache; it
is a pass of its own over the tokens where it comes after the up-projection. Backward, the transposed convolution is one
pass over dy that also sums the gradients of taps and biases; the product adds to it in its epilogue. Kept are x and the
two hidden tensors after their ReLU, which also say where the ReLU was open.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import MSTAWeights, TimeLayout, in_layout_of
from .bottleneck_kernels import hidden_kernel
from .device import architecture, config_or_rule
from .msta_kernels import slope_kernel, time_backward_kernel, time_kernel, up_kernel
from .projection import (
    ProjectionConfig,
    config_of,
    factors,
    launch_options,
    project,
    projection_candidates,
    projection_config,
)

MOST_SUMS = 256  # rows of partial sums at most, which bounds their memory at any batch size


class TimeConfig(NamedTuple):
    """Of the passes over frames: positions and channels of a program's tile, warps."""

    positions: int
    channels: int
    warps: int


def time_config(spread: int, dtype: torch.dtype, architecture: int) -> TimeConfig:
    """The static rule: some 1000 values of a frame a program, so that a dozen of them stay in registers.

    Args:
        spread: columns of a channel.

    A row of the tile is at least 64 columns, two sectors of memory or more. With four
    warps on sm_100, Triton 3.8 takes more registers than there are.
    """
    if spread == 1:
        return TimeConfig(16, 64, 4)
    return TimeConfig(max(32 // spread_block(spread), 1), 32, 8 if architecture == 100 else 4)


def time_candidates(spread: int, dtype: torch.dtype, architecture: int) -> list[TimeConfig]:
    """What a tuner may try, the static rule's first."""
    rule = time_config(spread, dtype, architecture)
    others = [rule._replace(positions=max(rule.positions // 2, 1)), rule._replace(warps=8)]
    others += [rule._replace(channels=2 * rule.channels, warps=8), rule._replace(positions=2 * rule.positions, warps=8)]
    return list(dict.fromkeys([rule, *others]))


def spread_block(spread: int) -> int:
    """Columns of the block that holds those of one channel."""
    return triton.next_power_of_2(spread)


def up_config(columns: int, depth: int, dtype: torch.dtype, architecture: int) -> ProjectionConfig:
    """The static rule of the up-projection beside the convolution: a projection's, but no more than four warps.

    Its end takes some 180 registers a thread, with eight warps too many for a second program on a multiprocessor.
    """
    return _with_four_warps(projection_config(columns, depth, dtype, architecture))


def up_candidates(columns: int, depth: int, dtype: torch.dtype, architecture: int) -> list[ProjectionConfig]:
    """What a tuner may try, the static rule's first."""
    others = projection_candidates(columns, depth, dtype, architecture)
    # A row of 128 registers of sums leaves too few for the end.
    small = [other for other in others if other.rows * other.columns <= 64 * 32 * other.warps]
    return list(dict.fromkeys([_with_four_warps(others[0]), *small]))


def _with_four_warps(config: ProjectionConfig) -> ProjectionConfig:
    return config if config.warps <= 4 else config._replace(rows=config.rows // 2, warps=4)


class Rows(NamedTuple):
    """Where a clip's frames are among the rows of tokens; see msta_kernels.py."""

    clips: int
    frames: int
    positions: int
    position_step: int
    frame_step: int
    lead: int

    @classmethod
    def of(cls, x: Tensor, time: TimeLayout) -> Rows:
        sequences, tokens, _ = x.shape
        frames = time.num_frames
        if time.joint:
            return cls(sequences, frames, (tokens - 1) // frames, frames, 1, 1)
        return cls(sequences // frames, frames, tokens, 1, tokens, 0)

    @property
    def of_clip(self) -> int:
        return self.lead + self.frames * self.positions

    def tasks(self, config: TimeConfig) -> int:
        return self.clips * max(triton.cdiv(self.positions, config.positions), 1)


def forward(
    x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (S, L, D) and both hidden tensors (S, L, d), empty unless they are kept; base may have another dtype than x."""
    x, base, scale = x.contiguous(), base.contiguous(), float(scale)  # an int would be a kernel of its own
    if x.numel() == 0:
        hidden = x.new_empty((*x.shape[:2], weights.down_weight.shape[0]) if keep else 0)
        return torch.empty_like(base), hidden, torch.empty_like(hidden)
    weights = _contiguous(weights)
    first = projected(x, weights.down_weight, weights.down_bias)
    second = projected(first, weights.shared_weight, weights.shared_bias)
    bias = weights.up_bias, None
    if time is None:
        y = project(second, weights.up_weight.t(), base, bias, False, scale)
    elif weights.after_up:
        u = project(second, weights.up_weight.t(), None, bias, False)
        y = convolved(u, base, weights, Rows.of(x, time), scale)
    else:
        y = up_beside_convolution(second, base, weights, Rows.of(x, time), scale)
    return (y, first, second) if keep else (y, x.new_empty(0), x.new_empty(0))


def backward(
    dy: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    weights: MSTAWeights,
    time: TimeLayout | None,
    scale: float,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in their order, none unless needed."""
    dy, x, scale = dy.contiguous(), x.contiguous(), float(scale)
    tensors = [tensor for tensor in weights if isinstance(tensor, Tensor)]
    if x.numel() == 0:
        gradients = [torch.zeros_like(tensor) for tensor in tensors if need_w]
        return torch.empty_like(x) if need_x else x.new_empty(0), gradients
    weights = _contiguous(weights)
    slope, sums = torch.empty_like(second), None
    if time is None:
        from_above = dy
    elif weights.after_up:
        u = second  # is not read where there are no sums
        if need_w:
            u = project(second, weights.up_weight.t(), None, (weights.up_bias, None), False)
        from_above, sums = transposed_convolution(dy, u, weights, Rows.of(x, time), torch.empty_like(dy), need_w)
    else:
        from_above, sums = dy, transposed_convolution(dy, second, weights, Rows.of(x, time), slope, need_w)[1]
    beside = time is not None and not weights.after_up
    second_bias = _through_relu(from_above, weights.up_weight, second, slope, scale, beside, need_w)
    hidden_slope = torch.empty_like(first)
    first_bias = _through_relu(slope, weights.shared_weight, first, hidden_slope, 1.0, False, need_w)
    dx = hidden_slope @ weights.down_weight if need_x else x.new_empty(0)
    if not need_w:
        return dx, []
    above, below = _flat(from_above), _flat(second)
    # The scale is a factor of fp32 sums: in fp16 it must not come after they are rounded.
    up = torch.addmm(weights.up_weight, above.t(), below, beta=0, alpha=scale)
    up_bias = above.sum(dim=0, dtype=torch.float32) if sums is None else sums[4]
    gradients = [_flat(hidden_slope).t() @ _flat(x), first_bias, _flat(slope).t() @ _flat(first), second_bias]
    gradients += [up, up_bias * scale]
    if sums is not None:
        gradients += [(sums[:3] * scale).t().unsqueeze(1), sums[3] * scale]
    return dx, [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def projected(a: Tensor, weight: Tensor, bias: Tensor, config: ProjectionConfig | None = None) -> Tensor:
    """ReLU(a Wᵀ + b) of contiguous tensors."""
    width, depth = weight.shape
    out = a.new_empty(*a.shape[:-1], width)
    rows, config = out.numel() // width, config or config_of(width, depth, a)
    hidden_kernel[triton.cdiv(rows, config.rows) * triton.cdiv(width, config.columns),](
        *factors(a, weight.t()),
        bias,
        None,
        out,
        rows,
        (width, depth),
        KIND="relu",
        **launch_options(width, depth, config),
    )
    return out


def up_beside_convolution(
    h: Tensor,
    base: Tensor,
    weights: MSTAWeights,
    rows: Rows,
    scale: float,
    config: ProjectionConfig | None = None,
) -> Tensor:
    """base + scale * (h Vᵀ + a + conv(h)) of contiguous tensors."""
    dim, width = weights.up_weight.shape
    y, config = torch.empty_like(base), config or up_config_of(dim, width, h)
    number = y.numel() // dim
    up_kernel[triton.cdiv(number, config.rows) * triton.cdiv(dim, config.columns),](
        *factors(h, weights.up_weight.t()),
        h,
        y,
        (weights.up_bias, weights.conv_weight, weights.conv_bias, base),
        number,
        (dim, width),
        rows.of_clip,
        rows.frames,
        rows.frame_step,
        scale,
        SPREAD=dim // width,
        LEAD=rows.lead,
        **launch_options(dim, width, config),
    )
    return y


def convolved(
    u: Tensor, base: Tensor, weights: MSTAWeights, rows: Rows, scale: float, config: TimeConfig | None = None
) -> Tensor:
    """base + scale * (u + conv(u)) of contiguous tensors."""
    y, dim, config = torch.empty_like(base), u.shape[-1], config or time_config_of(1, u)
    time_kernel[rows.tasks(config), triton.cdiv(dim, config.channels)](
        u,
        weights.conv_weight,
        weights.conv_bias,
        base,
        y,
        *rows[:5],
        dim,
        scale,
        LEAD=rows.lead,
        BLOCK_P=config.positions,
        BLOCK_C=config.channels,
        num_warps=config.warps,
    )
    return y


def transposed_convolution(
    dy: Tensor,
    h: Tensor,
    weights: MSTAWeights,
    rows: Rows,
    slope: Tensor,
    need_sums: bool,
    config: TimeConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What comes back through the convolution, written to `slope`, and the sums over tokens, (5, D) fp32."""
    dim, channels = dy.shape[-1], slope.shape[-1]
    config = config or time_config_of(dim // channels, dy)
    programs = min(rows.tasks(config), MOST_SUMS)
    sums = torch.empty(programs if need_sums else 0, 5, dim, dtype=torch.float32, device=dy.device)
    time_backward_kernel[programs, triton.cdiv(channels, config.channels)](
        dy,
        h,
        weights.conv_weight,
        slope,
        sums,
        *rows[:5],
        channels,
        SPREAD=dim // channels,
        LEAD=rows.lead,
        AFTER_UP=weights.after_up,
        SUMS=need_sums,
        BLOCK_P=config.positions,
        BLOCK_C=config.channels,
        BLOCK_S=spread_block(dim // channels),
        num_warps=config.warps,
    )
    return slope, sums.sum(dim=0) if need_sums else None


def _through_relu(
    dy: Tensor, weight: Tensor, h: Tensor, slope: Tensor, scale: float, add: bool, need_sums: bool
) -> Tensor:
    """slope = scale * (dy W + slope if add) where h is above 0; the sum over its rows, fp32, empty unless needed."""
    depth, width = weight.shape
    rows, config = h.numel() // width, config_of(width, depth, dy)
    blocks = triton.cdiv(rows, config.rows)
    sums = torch.empty(blocks if need_sums else 0, width, dtype=torch.float32, device=dy.device)
    slope_kernel[blocks * triton.cdiv(width, config.columns),](
        *factors(dy, weight),
        h,
        slope,
        sums if need_sums else None,
        rows,
        (depth, width),
        scale,
        ADD=add,
        **launch_options(width, depth, config),
    )
    return sums.sum(dim=0)


def up_config_of(columns: int, depth: int, h: Tensor) -> ProjectionConfig:
    """What was measured for this up-projection on the device of h, or else the static rule's choice."""
    question = columns, depth, h.dtype, architecture(h.device)
    return config_or_rule("msta_up", up_config(*question), h.device, *question)


def time_config_of(spread: int, x: Tensor) -> TimeConfig:
    """What was measured for this spread on the device of x, or else the static rule's choice."""
    question = spread, x.dtype, architecture(x.device)
    return config_or_rule("msta_time", time_config(*question), x.device, *question)


def _contiguous(weights: MSTAWeights) -> MSTAWeights:
    tensors = {name: field for name, field in weights._asdict().items() if isinstance(field, Tensor)}
    contiguous: dict[str, Any] = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return weights._replace(**contiguous)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
