"""What the mixer's kernels share: tiles of tokens and channels, and the neighbours of a patch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def program(blocks_c, blocks_p):
    """Channel block, token tile, clip, and the number of the tile over all clips; neighbours share their tile."""
    i_program = tl.program_id(0)
    i_tile = i_program // blocks_c
    return i_program % blocks_c, i_tile % blocks_p, i_tile // blocks_p, i_tile


@triton.jit
def patch(o_p, tokens, grid_height, grid_width, CLASS: tl.constexpr):
    """Row and column of a token in the grid, and whether it is a patch."""
    o_patch = o_p - CLASS
    m_patch = (o_patch >= 0) & (o_p < tokens)
    return o_patch // grid_width, o_patch % grid_width, m_patch


@triton.jit
def neighbour(o_y, o_x, m_patch, grid_height, grid_width, DY: tl.constexpr, DX: tl.constexpr):
    """Whether a patch has a neighbour at this offset."""
    m_y = (o_y + DY >= 0) & (o_y + DY < grid_height)
    return m_patch & m_y & (o_x + DX >= 0) & (o_x + DX < grid_width)


@triton.jit
def load(p_frame, o_p, o_c, m_p, m_c, columns):
    """[BLOCK_P, BLOCK_C] values of one frame in fp32."""
    pointers = p_frame + o_p[:, None] * columns + o_c[None, :]
    return tl.load(pointers, mask=m_p[:, None] & m_c[None, :], other=0.0).to(tl.float32)


@triton.jit
def store(p_frame, o_p, o_c, m_p, m_c, columns, b_value):
    pointers = p_frame + o_p[:, None] * columns + o_c[None, :]
    tl.store(pointers, b_value.to(p_frame.dtype.element_ty), mask=m_p[:, None] & m_c[None, :])


@triton.jit
def spatial(
    p_frame, p_taps, o_p, o_y, o_x, o_c, m_patch, m_c, columns, width, grid_height, grid_width, FLIP: tl.constexpr
):
    """[BLOCK_P, BLOCK_C]: 3x3 convolution of one frame; with FLIP its transpose."""
    b_sum = tl.zeros([o_p.shape[0], o_c.shape[0]], dtype=tl.float32)
    for k in tl.static_range(9):
        m_p = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
        b_tap = tl.load(p_taps + (8 - k if FLIP else k) * width + o_c, mask=m_c, other=0.0)
        o_there = o_p + (k // 3 - 1) * grid_width + (k % 3 - 1)
        b_sum += load(p_frame, o_there, o_c, m_p, m_c, columns) * b_tap[None, :]
    return b_sum


@triton.jit
def difference_bias(p_taps, p_bias, p_down, o_y, o_x, o_c, m_patch, m_c, width, grid_height, grid_width):
    """[BLOCK_P, BLOCK_C]: the convolution of the down-projection's bias, which the border cuts, plus its own bias."""
    b_down = tl.load(p_down + o_c, mask=m_c, other=0.0)
    b_sum = tl.zeros([o_y.shape[0], o_c.shape[0]], dtype=tl.float32) + tl.load(p_bias + o_c, mask=m_c, other=0.0)
    for k in tl.static_range(9):
        m_p = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
        b_tap = tl.load(p_taps + k * width + o_c, mask=m_c, other=0.0) * b_down
        b_sum += tl.where(m_p[:, None], b_tap[None, :], 0.0)
    return b_sum


@triton.jit
def sum_to(p_sums, row: tl.constexpr, width, o_c, m_c, b_sum):
    tl.store(p_sums + row * width + o_c, tl.sum(b_sum, axis=0), mask=m_c)


@triton.jit
def shifted(p_frame, k: tl.constexpr, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width):
    """[BLOCK_P, BLOCK_C]: the neighbours of all patches at offset k of the window, zeros outside the grid."""
    m_p = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
    o_there = o_p + (k // 3 - 1) * grid_width + (k % 3 - 1)
    return load(p_frame, o_there, o_c, m_p, m_c, columns)


@triton.jit
def tap(p_taps, k: tl.constexpr, width, o_c, m_c):
    return tl.load(p_taps + k * width + o_c, mask=m_c, other=0.0)[None, :]
