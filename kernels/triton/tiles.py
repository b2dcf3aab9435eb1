"""What the mixer's kernels share: tiles of tokens and channels, and groups of patches with their neighbours.

A group is some adjacent patches of a row of the grid, held by one thread: the patches that it loads above, below and
beside them serve them all. Tuples hold a tile [BLOCK_G, BLOCK_C] for each patch of a group, or of a line, which is a
group with the patch before it and the one behind it. `patches` makes the tuple that is passed around as `here`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Layout(NamedTuple):
    """Constants of the mixer's kernels."""

    WIDTH: int  # R, channels of a branch
    COLUMNS: int  # C of h: 2R where each branch has its own columns, the temporal one first, else R
    CLASS: int  # class tokens of a frame
    PATCHES_ONLY: bool  # the temporal branch leaves out class tokens, too


@triton.jit
def widen(b_value):
    """fp32 values of a tile; of bf16 by one shift or mask each, where a conversion takes two instructions."""
    if b_value.dtype == tl.bfloat16:
        b_value = (b_value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return b_value.to(tl.float32)


@triton.jit
def load(p_frame, o_p, o_c, m_tile, columns):
    """[BLOCK_P, BLOCK_C] values of one frame, zeros where the mask is off."""
    return tl.load(p_frame + (o_p[:, None] * columns + o_c[None, :]), mask=m_tile, other=0.0)


@triton.jit
def store(p_frame, o_p, o_c, m_tile, b_value, columns):
    tl.store(p_frame + (o_p[:, None] * columns + o_c[None, :]), b_value.to(p_frame.dtype.element_ty), mask=m_tile)


@triton.jit
def channels(i_block, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of blocks whose channels run fastest: channels, which of them exist, and what number is left of the block's.

    Where blocks fill the width, all exist, which is known when the kernel is compiled and makes masks cheap.
    """
    BLOCKS: tl.constexpr = (WIDTH + BLOCK_C - 1) // BLOCK_C
    o_c = i_block % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDTH % BLOCK_C == 0:
        m_c = tl.full([BLOCK_C], 1, tl.int1)
    else:
        m_c = o_c < WIDTH
    return o_c, m_c, i_block // BLOCKS


@triton.jit
def table_row(p_table, k, o_c, m_c, WIDTH: tl.constexpr):
    """[1, BLOCK_C] fp32: row k of a table (N, R)."""
    return tl.load(p_table + k * WIDTH + o_c, mask=m_c, other=0.0)[None, :]


@triton.jit
def patches(
    i_g,
    o_c,
    m_c,
    grid_height,
    grid_width,
    LAYOUT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    ADJACENT: tl.constexpr,
    EVEN: tl.constexpr = False,
):
    """A block of groups: offsets in a frame of their first patches and of those above and below, or the group's own row
    again where the grid ends; which of the three exist; which patches of a line do; row and column of the first patch.
    EVEN says that a row of the grid has an even number of them, and saves masks.
    """
    across = tl.cdiv(grid_width, ADJACENT)
    o_g = i_g * BLOCK_G + tl.arange(0, BLOCK_G)
    m_g = o_g < grid_height * across
    o_y, o_x = tl.minimum(o_g // across, grid_height - 1), o_g % across * ADJACENT
    m_above, m_below = o_y > 0, o_y + 1 < grid_height
    o_here = LAYOUT.CLASS + o_y * grid_width + o_x
    o_above, o_below = o_here - tl.where(m_above, grid_width, 0), o_here + tl.where(m_below, grid_width, 0)
    o_rows = (o_above[:, None] * LAYOUT.COLUMNS + o_c[None, :], o_here[:, None] * LAYOUT.COLUMNS + o_c[None, :])
    o_rows += (o_below[:, None] * LAYOUT.COLUMNS + o_c[None, :],)  # type: ignore[assignment]
    m_line = (m_c[None, :] & (o_x > 0)[:, None], m_c[None, :] & tl.full([BLOCK_G, 1], 1, tl.int1))
    for i in tl.static_range(1, ADJACENT + 1):
        if EVEN and ADJACENT % 2 == 0 and i % 2 == 1:
            m_line += (m_line[i],)  # type: ignore[assignment]  # of two patches both exist, or none
        else:
            m_line += (m_c[None, :] & (o_x + i < grid_width)[:, None],)  # type: ignore[assignment]
    return o_rows, (m_g & m_above, m_g, m_g & m_below), m_line, o_y, o_x


@triton.jit
def window(p_table, here, o_c, m_c, WIDTH: tl.constexpr, FLIP: tl.constexpr):
    """Nine taps [BLOCK_G, BLOCK_C] of a 3x3 convolution, with FLIP of its transpose; zeros for rows beside the grid.

    There the own row is once more, which is never further from a patch than its neighbours are. So what is not a number
    spreads no further than it should.
    """
    _, m_rows, _, _, _ = here
    taps = ()
    for k in tl.static_range(9):
        b_tap = table_row(p_table, 8 - k if FLIP else k, o_c, m_c, WIDTH)
        if k // 3 == 1:
            taps += (b_tap,)  # type: ignore[assignment]
        else:
            taps += (tl.where(m_rows[k // 3][:, None], b_tap, 0.0),)  # type: ignore[assignment]
    return taps


@triton.jit
def moved(here, o_frame):
    """The same groups of another frame, that begins so far behind."""
    o_rows, m_rows, m_line, o_y, o_x = here
    return (o_rows[0] + o_frame, o_rows[1] + o_frame, o_rows[2] + o_frame), m_rows, m_line, o_y, o_x


@triton.jit
def own(p_frame, here, COLUMNS: tl.constexpr):
    """The patches of a group, in fp32; of groups behind the grid some others."""
    o_rows, _, m_line, _, _ = here
    b_own = ()
    for i in tl.static_range(len(m_line) - 2):
        b_here = tl.load(p_frame + i * COLUMNS + o_rows[1], mask=m_line[i + 1], other=0.0)
        b_own += (widen(b_here),)  # type: ignore[assignment]
    return b_own


@triton.jit
def line(p_frame, b_own, here, DY: tl.constexpr, COLUMNS: tl.constexpr):
    """A line in fp32: of the row above (DY 0), the own, of which b_own is the group itself, or the one below (2)."""
    o_rows, _, m_line, _, _ = here
    b_line = ()
    for j in tl.static_range(len(m_line)):
        if DY == 1 and j > 0 and j < len(m_line) - 1:
            b_line += (b_own[j - 1],)  # type: ignore[assignment]
        else:
            b_there = tl.load(p_frame + (j - 1) * COLUMNS + o_rows[DY], mask=m_line[j], other=0.0)
            b_line += (widen(b_there),)  # type: ignore[assignment]
    return b_line


@triton.jit
def add_line(b_sums, b_line, b_left, b_middle, b_right):
    """A group plus a row of a 3x3 convolution, whose taps these are, over a line."""
    added = ()
    for i in tl.static_range(len(b_sums)):
        b_sum = b_sums[i] + b_line[i] * b_left + b_line[i + 1] * b_middle
        added += (b_sum + b_line[i + 2] * b_right,)
    return added


@triton.jit
def zeros(b_group):
    b_zeros = ()
    for i in tl.static_range(len(b_group)):
        b_zeros += (tl.zeros(b_group[i].shape, dtype=tl.float32),)
    return b_zeros


@triton.jit
def sums(b_group, b_other):
    b_sums = ()
    for i in tl.static_range(len(b_group)):
        b_sums += (b_group[i] + b_other[i],)
    return b_sums


@triton.jit
def differences(b_group, b_other):
    b_differences = ()
    for i in tl.static_range(len(b_group)):
        b_differences += (b_group[i] - b_other[i],)
    return b_differences


@triton.jit
def store_group(p_frame, b_group, here, COLUMNS: tl.constexpr):
    o_rows, m_rows, m_line, _, _ = here
    for i in tl.static_range(len(b_group)):
        b_value = b_group[i].to(p_frame.dtype.element_ty)
        tl.store(p_frame + i * COLUMNS + o_rows[1], b_value, mask=m_line[i + 1] & m_rows[1][:, None])


@triton.jit
def column_sum(p_rows, rows, stride, o_c, m_c, BLOCK_M: tl.constexpr):
    """[BLOCK_C] fp32: sums over rows that are `stride` values apart, always in the same order."""
    b_sum = tl.zeros([BLOCK_M, o_c.shape[0]], dtype=tl.float32)
    for first in range(0, rows, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)
        pointers = p_rows + o_m[:, None].to(tl.int64) * stride + o_c[None, :]
        b_sum += tl.load(pointers, mask=(o_m < rows)[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    return tl.sum(b_sum, axis=0)
