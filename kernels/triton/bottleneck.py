"""bottleneck_adapter on the Triton backend: one launch where the bottleneck is narrow, else one a projection.

Only x and h are kept for the backward pass, which writes g = act(h) once more where weights are trained. Sums over
rows, the gradients of the biases, leave the kernels as one partial sum a block of rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import in_layout_of
from .bottleneck_kernels import bottleneck_backward_kernel, bottleneck_kernel, hidden_gradient_kernel, hidden_kernel
from .device import architecture, config_or_rule, shared_memory
from .projection import Blocks, ProjectionConfig, config_of, factors, launch_options, project, project_and_sum


class BottleneckConfig(NamedTuple):
    """Rows of a program, columns of the tokens it takes at a time, pipeline stages, warps; no rows: two launches."""

    rows: int
    columns: int
    stages: int
    warps: int


TWO_LAUNCHES = BottleneckConfig(0, 0, 0, 0)


def block_width(width: int) -> int:
    """Columns of the block that holds a whole bottleneck: a power of two that tensor cores can work on."""
    return max(triton.next_power_of_2(width), 16)


def bottleneck_config(width: int, dtype: torch.dtype, architecture: int) -> BottleneckConfig:
    """The static rule: one launch where its time is the memory's, and its values stay in registers.

    At 1.5 to 3 KB a token and R = 128 the tensor cores need less time than the memory; at R = 256 they need more. They
    do not multiply fp32.
    """
    return TWO_LAUNCHES if dtype == torch.float32 or block_width(width) > 128 else BottleneckConfig(128, 64, 3, 8)


def bottleneck_candidates(width: int, dtype: torch.dtype, architecture: int) -> list[BottleneckConfig]:
    """What a tuner may try, the static rule's first."""
    rule, block = bottleneck_config(width, dtype, architecture), block_width(width)
    if rule == TWO_LAUNCHES:
        return [rule]
    others = [BottleneckConfig(64, 64, stages, 4) for stages in (3, 4)]
    others += [BottleneckConfig(128, 64, 3, 4)] if block <= 64 else []
    others += [BottleneckConfig(128, 64, 4, 8), BottleneckConfig(128, 128, 2, 8), TWO_LAUNCHES]
    limit = shared_memory(architecture)
    pipelines = {other: other.stages * (other.rows + block) * other.columns * dtype.itemsize for other in others}
    return [rule, *(other for other, pipeline in pipelines.items() if pipeline <= limit)]


def forward(
    x: Tensor,
    weights: list[Tensor],
    activation: str,
    scale: float,
    residual: bool,
    keep: bool,
    config: BottleneckConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """y and h, (N, D) and (N, R), of x (N, D); h is empty unless it is kept.

    The weights are down_weight (R, D), down_bias (R,), up_weight (D, R), up_bias (D,).
    """
    x, (down, down_bias, up, up_bias) = x.contiguous(), (tensor.contiguous() for tensor in weights)
    (rows, dim), width, scale = x.shape, down.shape[0], float(scale)  # an int would be a kernel of its own
    h = x.new_empty(rows, width) if keep else x.new_empty(0)
    if rows == 0:
        return torch.empty_like(x), h
    config = config or _config_of(width, x)
    if config == TWO_LAUNCHES:
        g = x.new_empty(rows, width)
        tiles = config_of(width, dim, x)
        hidden_kernel[_programs(rows, width, tiles),](
            *factors(x, down.t()),
            down_bias,
            h if keep else None,
            g,
            rows,
            (width, dim),
            KIND=activation,
            **launch_options(width, dim, tiles),
        )
        return project(g, up.t(), x if residual else None, (up_bias, None), False, scale), h
    y = torch.empty_like(x)
    bottleneck_kernel[triton.cdiv(rows, config.rows),](
        x,
        down,
        down_bias,
        up,
        up_bias,
        y,
        h if keep else None,
        rows,
        (width, dim),
        scale,
        KIND=activation,
        RESIDUAL=residual,
        **one_launch_options(width, dim, config),
    )
    return y, h


def backward(
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    activation: str,
    scale: float,
    residual: bool,
    need_x: bool,
    need_w: bool,
    config: BottleneckConfig | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of the four weights, none unless needed."""
    dy, x, down, up = dy.contiguous(), x.contiguous(), weights[0].contiguous(), weights[2].contiguous()
    (rows, dim), width, scale = x.shape, down.shape[0], float(scale)
    dx = x.new_empty(0)
    if rows == 0:
        return torch.empty_like(x) if need_x else dx, [torch.zeros_like(tensor) for tensor in weights if need_w]
    config = config or _config_of(width, x)
    # A launch of all that ends before dx would read the tokens no less often than a product alone does.
    one_launch = need_x and config != TWO_LAUNCHES
    g = x.new_empty(rows if need_w else 0, width)
    dy_sum = None
    if one_launch:
        dx, dh = torch.empty_like(x), x.new_empty(rows if need_w else 0, width)
        blocks = triton.cdiv(rows, config.rows)
        sums = _partial_sums(blocks, width + dim, dy, need_w)
        bottleneck_backward_kernel[blocks,](
            dy,
            h,
            down,
            up,
            dx,
            (dh, g, sums) if need_w else (None, None, None),
            rows,
            (width, dim),
            scale,
            KIND=activation,
            RESIDUAL=residual,
            **one_launch_options(width, dim, config),
        )
        if need_w:
            dh_sum, dy_sum = sums.sum(dim=0).split([width, dim])
    else:
        tiles, dh = config_of(width, dim, dy), x.new_empty(rows, width)
        sums = _partial_sums(triton.cdiv(rows, tiles.rows), width, dy, need_w)
        hidden_gradient_kernel[_programs(rows, width, tiles),](
            *factors(dy, up),
            h,
            (dh, g, sums) if need_w else (dh, None, None),
            rows,
            (dim, width),
            scale,
            KIND=activation,
            **launch_options(width, dim, tiles),
        )
        if need_x and need_w and residual:
            dx, dy_sums = project_and_sum(dh, down, dy)
            dy_sum = dy_sums.sum(dim=0)
        elif need_x:
            dx = project(dh, down, dy if residual else None, None, False)
        if need_w:
            dh_sum = sums.sum(dim=0)
    if not need_w:
        return dx, []
    if dy_sum is None:
        dy_sum = dy.sum(dim=0, dtype=torch.float32)
    gradients = [dh.t() @ x, dh_sum, dy.t() @ g, dy_sum * scale]
    return dx, [in_layout_of(tensor, gradient) for tensor, gradient in zip(weights, gradients, strict=True)]


def one_launch_options(width: int, dim: int, config: BottleneckConfig) -> dict[str, Any]:
    """The constant that both kernels of one launch share, and the launch's own."""
    block = block_width(width)
    even = width == block, dim % config.columns == 0
    blocks = Blocks(*even, config.rows, block, config.columns)
    return {"BLOCKS": blocks, "num_stages": config.stages, "num_warps": config.warps}


def _config_of(width: int, x: Tensor) -> BottleneckConfig:
    """What was measured for this width on the device of x, or else the static rule's choice."""
    question = width, x.dtype, architecture(x.device)
    return config_or_rule("bottleneck", bottleneck_config(*question), x.device, *question)


def _programs(rows: int, columns: int, config: ProjectionConfig) -> int:
    return triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns)


def _partial_sums(blocks: int, columns: int, like: Tensor, needed: bool) -> Tensor:
    return torch.empty(blocks if needed else 0, columns, dtype=torch.float32, device=like.device)
