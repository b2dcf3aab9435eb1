"""bias_gelu on the Triton backend: one read and one write of the hidden activations, sixteen bytes an access."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import value_and_slope
from .device import config_or_rule


class GELUConfig(NamedTuple):
    """Tile of a program, warps, and how many tiles below each other a program sums the bias's gradient over."""

    rows: int
    columns: int
    warps: int
    steps: int


def gelu_config(width: int, itemsize: int) -> GELUConfig:
    """The static rule: 64 bytes a thread and tensor, in rows of up to a kilobyte."""
    columns = min(1024 // itemsize, triton.next_power_of_2(width))
    return GELUConfig(rows=max(8192 // itemsize // columns, 1), columns=columns, warps=4, steps=8)


def gelu_candidates(width: int, itemsize: int) -> list[GELUConfig]:
    """What a tuner may try, the static rule's first: 32 to 64 bytes a thread and tensor, in 4 or 8 warps."""
    rule = gelu_config(width, itemsize)
    others = (rule._replace(rows=max(rule.rows // 2, 1)), rule._replace(rows=rule.rows * 2, warps=8))
    return [rule, *others, rule._replace(warps=8), rule._replace(steps=rule.steps * 4)]


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_kernel(
    p_h,  # (M, C), contiguous, as all tensors of two dimensions
    p_bias,  # (C,)
    p_g,
    rows,
    width,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks_c = tl.cdiv(width, BLOCK_C)
    i_m, i_c = tl.program_id(0) // blocks_c, tl.program_id(0) % blocks_c
    first = i_m * BLOCK_M
    o_m, o_c = tl.arange(0, BLOCK_M), i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_tile = (o_m < rows - first)[:, None] & (o_c < width)[None, :]
    o_tile = first.to(tl.int64) * width + (o_m[:, None] * width + o_c[None, :])
    b_bias = tl.load(p_bias + o_c, mask=o_c < width, other=0.0).to(tl.float32)
    b_h = tl.load(p_h + o_tile, mask=m_tile, other=0.0).to(tl.float32) + b_bias[None, :]
    b_g, _ = value_and_slope(b_h, KIND)
    tl.store(p_g + o_tile, b_g.to(p_g.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_backward_kernel(
    p_dg,
    p_h,
    p_bias,
    p_dh,
    p_sums,  # (programs over M, C) fp32: each program's sum of dh over its rows
    rows,
    width,
    KIND: tl.constexpr,
    DH: tl.constexpr,
    SUMS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks_c = tl.cdiv(width, BLOCK_C)
    i_m, i_c = tl.program_id(0) // blocks_c, tl.program_id(0) % blocks_c
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < width
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
    for step in range(STEPS):
        first = (i_m * STEPS + step) * BLOCK_M
        o_m = tl.arange(0, BLOCK_M)
        m_tile = (o_m < rows - first)[:, None] & m_c[None, :]
        o_tile = first.to(tl.int64) * width + (o_m[:, None] * width + o_c[None, :])
        b_h = tl.load(p_h + o_tile, mask=m_tile, other=0.0).to(tl.float32) + b_bias[None, :]
        _, b_slope = value_and_slope(b_h, KIND)
        b_dh = tl.load(p_dg + o_tile, mask=m_tile, other=0.0).to(tl.float32) * b_slope
        if DH:
            tl.store(p_dh + o_tile, b_dh.to(p_dh.dtype.element_ty), mask=m_tile)
        if SUMS:
            b_sum += b_dh
    if SUMS:
        tl.store(p_sums + i_m.to(tl.int64) * width + o_c, tl.sum(b_sum, axis=0), mask=m_c)


def _config_of(h: Tensor) -> GELUConfig:
    """What was measured on the device of h, or else the static rule's tile."""
    question = h.shape[-1], h.element_size()
    return config_or_rule("bias_gelu", gelu_config(*question), h.device, *question)


def forward(h: Tensor, bias: Tensor, activation: str, config: GELUConfig | None = None) -> Tensor:
    """act(h + bias), contiguous, of h (..., C) and bias (C,)."""
    h, width = h.contiguous(), bias.shape[0]
    g = torch.empty_like(h)
    if h.numel():
        config = config or _config_of(h)
        rows = h.numel() // width
        programs = triton.cdiv(rows, config.rows) * triton.cdiv(width, config.columns)
        tiles = {"BLOCK_M": config.rows, "BLOCK_C": config.columns, "num_warps": config.warps}
        bias_gelu_kernel[programs,](h, bias.contiguous(), g, rows, width, KIND=activation, **tiles)
    return g


def backward(
    dg: Tensor,
    h: Tensor,
    bias: Tensor,
    activation: str,
    need_h: bool,
    need_bias: bool,
    config: GELUConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """dh (..., C) and the bias's gradient (C,), each empty unless needed."""
    dg, h, width = dg.contiguous(), h.contiguous(), bias.shape[0]
    dh = torch.empty_like(h) if need_h else h.new_empty(0)
    if not h.numel():
        return dh, torch.zeros_like(bias) if need_bias else bias.new_empty(0)
    config = config or _config_of(h)
    steps, rows = config.steps if need_bias else 1, h.numel() // width
    blocks = triton.cdiv(rows, config.rows * steps)
    sums = torch.empty(blocks if need_bias else 0, width, dtype=torch.float32, device=h.device)
    bias_gelu_backward_kernel[blocks * triton.cdiv(width, config.columns),](
        dg,
        h,
        bias.contiguous(),
        dh,
        sums,
        rows,
        width,
        KIND=activation,
        DH=need_h,
        SUMS=need_bias,
        STEPS=steps,
        BLOCK_M=config.rows,
        BLOCK_C=config.columns,
        num_warps=config.warps,
    )
    return dh, sums.sum(dim=0).to(bias.dtype) if need_bias else bias.new_empty(0)
