"""Weights of ted_adapter's two branches side by side, for products of both at once, and their gradients apart again.

A launch each: weights are small, and the start of every launch that prepares them is time that no product works. One
branch alone has nothing to prepare.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operands import Branches, Geometry
from .projection import Biases
from .tiles import column_sum

_BLOCK = 1024
_BLOCK_R = 32  # channels of the mixer's tables


class Tables(NamedTuple):
    """The mixer's weights as its kernels read them (mixer_kernels.py); a branch that is off has none."""

    temporal: Tensor | None  # (4, R) fp32
    difference: Tensor | None  # (25, R) fp32

    @classmethod
    def empty(cls, temporal: list[Tensor], difference: list[Tensor]) -> Tables:
        """Memory for the tables of a mixer's weights."""
        sizes = ((4, temporal), (25, difference))
        found = (part[1].new_empty(rows, len(part[1]), dtype=torch.float32) if part else None for rows, part in sizes)
        return cls(*found)

    @classmethod
    def of(cls, temporal: list[Tensor], difference: list[Tensor]) -> Tables:
        """The tables of contiguous weights, as `MixerWeights` has them."""
        tables = cls.empty(temporal, difference)
        width = len((temporal or difference)[1])
        table_kernel[triton.cdiv(width, _BLOCK_R),](
            tuple(temporal) or None, tuple(difference) or None, *tables, width, BLOCK_R=_BLOCK_R
        )
        return tables


class Joined(NamedTuple):
    """Contiguous weights of all projections: down (C, D), its bias (C,) or None, and up (D, C); TE's columns first.

    TD's half of the bias is zero: the difference of two frames would cancel it, so it is added afterwards.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor

    @classmethod
    def of(
        cls, branches: Branches, temporal: list[Tensor], difference: list[Tensor], dtype: torch.dtype
    ) -> tuple[Joined, Tables]:
        """The weights of all projections in this dtype and, in the same launch, the tables of the mixer's weights."""
        parts = [(part[0].contiguous(), part[1].contiguous(), part[4].contiguous()) for part in branches.projections()]
        down, bias, up = parts[0]
        has_bias = bool(branches.temporal)
        if len(parts) == 1 and down.dtype == bias.dtype == up.dtype == dtype:
            return cls(down, bias if has_bias else None, up), Tables.of(temporal, difference)
        (width, dim), columns = down.shape, len(parts) * len(down)
        joined = cls(
            down.new_empty(columns, dim, dtype=dtype),
            bias.new_empty(columns, dtype=dtype) if has_bias else None,
            up.new_empty(dim, columns, dtype=dtype),
        )
        tables, blocks = Tables.empty(temporal, difference), triton.cdiv(width * dim, _BLOCK)
        join_kernel[blocks + triton.cdiv(width, _BLOCK_R),](
            parts[0],
            parts[1] if len(parts) == 2 else None,
            joined,
            tuple(temporal) or None,
            tuple(difference) or None,
            tables,
            blocks,
            width * dim,
            width,
            BLOCK=_BLOCK,
            BLOCK_R=_BLOCK_R,
        )
        return joined, tables


def split(down: Tensor, up: Tensor, branches: Branches) -> tuple[list[Tensor], list[Tensor]]:
    """Contiguous down (C, D) and up (D, C) as those of each projection, in its dtype and in memory of their own."""
    parts = branches.projections()
    if len(parts) == 1 and parts[0][0].dtype == parts[0][4].dtype == down.dtype:
        return [down], [up]
    downs, ups = ([part[i].new_empty(part[i].shape) for part in parts] for i in (0, 4))
    size = downs[0].numel()
    split_kernel[triton.cdiv(size, _BLOCK),](
        down, up, tuple(downs), tuple(ups), size, len(downs[0]), PARTS=len(parts), BLOCK=_BLOCK
    )
    return downs, ups


def up_biases(branches: Branches, patches_only: bool) -> Biases:
    """TE's (D,), which every row takes, and TD's, which patch rows take besides, if there are any; contiguous.

    With patches_only, what there is goes to patch rows.
    """
    temporal = branches.temporal[5].contiguous() if branches.temporal else None
    difference = branches.difference[5].contiguous() if len(branches.difference) == 6 else None
    if not patches_only or temporal is None:
        return temporal, difference
    return None, temporal if difference is None else temporal + difference


def up_bias_gradients(partial: Tensor, dy: Tensor, branches: Branches, geometry: Geometry) -> list[Tensor]:
    """Gradients of the up-projections' biases: sums over all rows for TE, unless it takes patches only, and over
    patch rows for TD.

    Args:
        partial: (N, D) fp32, sums of dy over blocks of rows. dy: (B*T, L, D), contiguous.
    """
    biases = [part[5] for part in branches.projections()]
    gradients = [bias.new_empty(bias.shape) for bias in biases]
    frames, tokens, dim = dy.shape
    columns = min(16, triton.next_power_of_2(dim))
    row_sums_kernel[triton.cdiv(dim, columns),](
        partial,
        dy,
        gradients[0],
        gradients[-1],
        partial.shape[0],
        frames,
        tokens * dim,
        dim,
        ALL=bool(branches.temporal),
        PATCHES=len(branches.difference) == 6,
        CLASS=geometry.class_token,
        PATCHES_ONLY=geometry.patches_only,
        BLOCK_M=256,
        BLOCK_C=columns,
    )
    return gradients


@triton.jit
def write_temporal_table(temporal, p_table, o_r, width):
    """Of the channels o_r: three taps, bias."""
    m_r = o_r < width
    for k in tl.static_range(3):
        tl.store(p_table + k * width + o_r, tl.load(temporal[0] + o_r * 3 + k, mask=m_r), mask=m_r)
    tl.store(p_table + 3 * width + o_r, tl.load(temporal[1] + o_r, mask=m_r), mask=m_r)


@triton.jit
def write_difference_table(difference, p_table, o_r, width):
    """Of the channels o_r: nine taps, and what a patch gets besides for every set of neighbours that it may have."""
    m_r = o_r < width
    b_bias = tl.load(difference[1] + o_r, mask=m_r).to(tl.float32)
    b_down = tl.load(difference[2] + o_r, mask=m_r).to(tl.float32)
    taps = ()
    for k in tl.static_range(9):
        b_tap = tl.load(difference[0] + o_r * 9 + k, mask=m_r).to(tl.float32)
        tl.store(p_table + k * width + o_r, b_tap, mask=m_r)
        taps += (b_tap,)
    for there in tl.static_range(16):
        b_sum = b_bias
        for k in tl.static_range(9):
            if (k // 3 == 1 or there & (1 + k // 6)) and (k % 3 == 1 or there & (4 + 2 * (k % 3))):
                b_sum += taps[k] * b_down
        tl.store(p_table + (9 + there) * width + o_r, b_sum, mask=m_r)


@triton.jit
def table_kernel(
    temporal,  # taps (R, 3) and bias (R,), or None
    difference,  # taps (R, 9), bias (R,) and the down-projection's bias (R,), or None
    p_temporal,  # (4, R) fp32, or None
    p_difference,  # (25, R) fp32, or None
    width,
    BLOCK_R: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    if p_temporal is not None:
        write_temporal_table(temporal, p_temporal, o_r, width)
    if p_difference is not None:
        write_difference_table(difference, p_difference, o_r, width)


@triton.jit
def join_kernel(
    te,  # down (R, D), its bias (R,), up (D, R) of the first projection
    td,  # and of the second, or None
    joined,  # down (C, D), bias (C,) or None, up (D, C)
    temporal,  # as in table_kernel
    difference,
    tables,
    blocks,  # of projections; then come those of the tables
    size,  # R D
    width,  # R
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    p_down, p_bias, p_up = joined
    i_block = tl.program_id(0)
    if i_block < blocks:
        o_w = i_block * BLOCK + tl.arange(0, BLOCK)
        m_w, m_b = o_w < size, o_w < width
        tl.store(p_down + o_w, tl.load(te[0] + o_w, mask=m_w), mask=m_w)
        if p_bias is not None:
            tl.store(p_bias + o_w, tl.load(te[1] + o_w, mask=m_b), mask=m_b)
        if td is None:
            tl.store(p_up + o_w, tl.load(te[2] + o_w, mask=m_w), mask=m_w)
        else:
            o_up = o_w // width * (2 * width) + o_w % width
            tl.store(p_down + size + o_w, tl.load(td[0] + o_w, mask=m_w), mask=m_w)
            tl.store(p_bias + width + o_w, tl.zeros([BLOCK], dtype=tl.float32), mask=m_b)
            tl.store(p_up + o_up, tl.load(te[2] + o_w, mask=m_w), mask=m_w)
            tl.store(p_up + width + o_up, tl.load(td[2] + o_w, mask=m_w), mask=m_w)
    else:
        o_r = (i_block - blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
        if temporal is not None:
            write_temporal_table(temporal, tables[0], o_r, width)
        if difference is not None:
            write_difference_table(difference, tables[1], o_r, width)


@triton.jit
def split_kernel(
    p_down,  # (C, D)
    p_up,  # (D, C)
    downs,  # (R, D) of each projection
    ups,  # (D, R)
    size,  # R D
    width,  # R
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < size
    o_up = o_w // width * (PARTS * width) + o_w % width
    for i in tl.static_range(PARTS):
        tl.store(downs[i] + o_w, tl.load(p_down + i * size + o_w, mask=m_w), mask=m_w)
        tl.store(ups[i] + o_w, tl.load(p_up + i * width + o_up, mask=m_w), mask=m_w)


@triton.jit(do_not_specialize=["blocks", "frames", "frame_size"])
def row_sums_kernel(
    p_partial,  # (blocks of rows, D) fp32
    p_dy,
    p_all,  # (D,)
    p_patches,
    blocks,
    frames,
    frame_size,
    dim,
    ALL: tl.constexpr,  # whether the sum over all rows is needed
    PATCHES: tl.constexpr,  # whether that over patch rows is
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,  # whether patch rows are all
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < dim
    b_sum = column_sum(p_partial, blocks, dim, o_c, m_c, BLOCK_M)
    if ALL and not PATCHES_ONLY:
        tl.store(p_all + o_c, b_sum, mask=m_c)
    if CLASS and (PATCHES or PATCHES_ONLY):
        b_sum -= column_sum(p_dy, frames, frame_size, o_c, m_c, BLOCK_M)
    if ALL and PATCHES_ONLY:
        tl.store(p_all + o_c, b_sum, mask=m_c)
    if PATCHES:
        tl.store(p_patches + o_c, b_sum, mask=m_c)
