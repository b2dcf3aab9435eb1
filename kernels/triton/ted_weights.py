"""Weights of ted_adapter's two branches side by side, for products of both at once, and their gradients apart again.

A launch each: weights are small, and the start of every launch that prepares them is time that no product works. One
branch alone has nothing to prepare.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..operands import Branches, Geometry
from .projection import Biases
from .tiles import column_sum

_BLOCK = 1024


class Joined(NamedTuple):
    """Contiguous weights of all projections: down (C, D), its bias (C,) or None, and up (D, C); TE's columns first.

    TD's half of the bias is zero: the difference of two frames would cancel it, so it is added afterwards.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor

    @classmethod
    def of(cls, branches: Branches) -> Joined:
        te, *td = branches.projections()
        te_down, te_bias, te_up = te[0].contiguous(), te[1].contiguous(), te[4].contiguous()
        if not td:
            return cls(te_down, te_bias if branches.temporal else None, te_up)
        width, dim = te_down.shape
        joined = cls(te_down.new_empty(2 * width, dim), te_bias.new_empty(2 * width), te_up.new_empty(dim, 2 * width))
        td_down, td_up = td[0][0].contiguous(), td[0][4].contiguous()
        join_kernel[triton.cdiv(width * dim, _BLOCK),](
            te_down, td_down, te_bias, te_up, td_up, *joined, width * dim, width, BLOCK=_BLOCK
        )
        return joined


def split(down: Tensor, up: Tensor, branches: Branches) -> tuple[list[Tensor], list[Tensor]]:
    """Contiguous down (C, D) and up (D, C) as those of each projection, in memory of their own."""
    parts = branches.projections()
    if len(parts) == 1:
        return [down], [up]
    downs, ups = ([part[i].new_empty(part[i].shape) for part in parts] for i in (0, 4))
    size = downs[0].numel()
    split_kernel[triton.cdiv(size, _BLOCK),](down, up, *downs, *ups, size, downs[0].shape[0], BLOCK=_BLOCK)
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
def join_kernel(
    p_te_down,  # (R, D)
    p_td_down,
    p_te_bias,  # (R,)
    p_te_up,  # (D, R)
    p_td_up,
    p_down,  # (2R, D)
    p_bias,  # (2R,)
    p_up,  # (D, 2R)
    size,  # R D
    width,  # R
    BLOCK: tl.constexpr,
):
    o_w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_w, m_b = o_w < size, o_w < width
    o_up = o_w // width * (2 * width) + o_w % width
    tl.store(p_down + o_w, tl.load(p_te_down + o_w, mask=m_w), mask=m_w)
    tl.store(p_down + size + o_w, tl.load(p_td_down + o_w, mask=m_w), mask=m_w)
    tl.store(p_up + o_up, tl.load(p_te_up + o_w, mask=m_w), mask=m_w)
    tl.store(p_up + width + o_up, tl.load(p_td_up + o_w, mask=m_w), mask=m_w)
    tl.store(p_bias + o_w, tl.load(p_te_bias + o_w, mask=m_b), mask=m_b)
    tl.store(p_bias + width + o_w, tl.zeros([BLOCK], dtype=tl.float32), mask=m_b)


@triton.jit
def split_kernel(
    p_down,  # (2R, D)
    p_up,  # (D, 2R)
    p_te_down,  # (R, D)
    p_td_down,
    p_te_up,  # (D, R)
    p_td_up,
    size,  # R D
    width,  # R
    BLOCK: tl.constexpr,
):
    o_w = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < size
    o_up = o_w // width * (2 * width) + o_w % width
    tl.store(p_te_down + o_w, tl.load(p_down + o_w, mask=m_w), mask=m_w)
    tl.store(p_td_down + o_w, tl.load(p_down + size + o_w, mask=m_w), mask=m_w)
    tl.store(p_te_up + o_w, tl.load(p_up + o_up, mask=m_w), mask=m_w)
    tl.store(p_td_up + o_w, tl.load(p_up + width + o_up, mask=m_w), mask=m_w)


@triton.jit(do_not_specialize=["blocks", "frames"])
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
