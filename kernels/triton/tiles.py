"""What the mixer's kernels share: tiles of tokens and channels, and the neighbours of a patch in its frame.

A tile is passed around as the tuple `(o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)` that `tile`
makes: tokens, their rows and columns in the grid, channels, which tokens are patches, which channels exist, and the
distance of two tokens in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(o_p, o_c, tokens, width, columns, grid_height, grid_width, CLASS: tl.constexpr):
    """The tile of tokens o_p and channels o_c; token 0 is the class token or, without one, the first patch."""
    o_patch = o_p - CLASS
    m_patch = (o_patch >= 0) & (o_p < tokens)
    return o_p, o_patch // grid_width, o_patch % grid_width, o_c, m_patch, o_c < width, columns, grid_height, grid_width


@triton.jit
def neighbour(o_y, o_x, m_patch, grid_height, grid_width, dy, dx):
    """Whether a patch has a neighbour at this offset."""
    m_y = (o_y + dy >= 0) & (o_y + dy < grid_height)
    return m_patch & m_y & (o_x + dx >= 0) & (o_x + dx < grid_width)


@triton.jit
def load(p_frame, o_p, o_c, m_p, m_c, columns):
    """[BLOCK_P, BLOCK_C] values of one frame, zeros where a mask is off."""
    pointers = p_frame + o_p[:, None] * columns + o_c[None, :]
    return tl.load(pointers, mask=m_p[:, None] & m_c[None, :], other=0.0)


@triton.jit
def store(p_frame, o_p, o_c, m_p, m_c, columns, b_value):
    pointers = p_frame + o_p[:, None] * columns + o_c[None, :]
    tl.store(pointers, b_value.to(p_frame.dtype.element_ty), mask=m_p[:, None] & m_c[None, :])


@triton.jit
def vector(p_vector, o_c, m_c):
    """[1, BLOCK_C] fp32 values of a vector (R,) of any dtype."""
    return tl.load(p_vector + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def tap(p_taps, k, o_c, m_c, TAPS: tl.constexpr):
    """[1, BLOCK_C] fp32: tap k of a convolution whose weight (R, TAPS) has any dtype."""
    return tl.load(p_taps + o_c * TAPS + k, mask=m_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def taps_of(p_taps, o_c, m_c, TAPS: tl.constexpr, FLIP: tl.constexpr):
    """A tuple of [1, BLOCK_C] fp32 taps of a convolution (R, TAPS), in registers; with FLIP of its transpose."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps += (tap(p_taps, TAPS - 1 - k if FLIP else k, o_c, m_c, TAPS),)  # type: ignore[assignment]
    return taps


@triton.jit
def shifted(p_frame, b_here, tile, K: tl.constexpr):
    """[BLOCK_P, BLOCK_C] fp32: the neighbours of all patches at offset K of the 3x3 window, zeros outside the grid.

    b_here holds the patches themselves, which are neighbours at K = 4.
    """
    o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width = tile
    if K == 4:
        b_there = b_here
    else:
        m_there = neighbour(o_y, o_x, m_patch, grid_height, grid_width, K // 3 - 1, K % 3 - 1)
        o_there = ((K // 3 - 1) * grid_width + (K % 3 - 1)) * columns  # one number, which costs a thread no register
        b_there = load(p_frame + o_there, o_p, o_c, m_there, m_c, columns)
    return b_there.to(tl.float32)


@triton.jit
def difference_bias(p_bias, p_down, taps, tile):
    """[BLOCK_P, BLOCK_C]: the convolution of the down-projection's bias, which the border cuts, plus its own bias."""
    o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width = tile
    b_down = vector(p_down, o_c, m_c)
    b_sum = tl.zeros([o_p.shape[0], o_c.shape[0]], tl.float32) + vector(p_bias, o_c, m_c)
    for k in tl.static_range(9):
        m_there = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
        b_sum += tl.where(m_there[:, None], taps[k] * b_down, 0.0)
    return b_sum


@triton.jit
def column_sum(p_rows, rows, stride, o_c, m_c, BLOCK_M: tl.constexpr):
    """[BLOCK_C] fp32: sums over rows that are `stride` values apart, always in the same order."""
    b_sum = tl.zeros([BLOCK_M, o_c.shape[0]], dtype=tl.float32)
    for first in range(0, rows, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)
        pointers = p_rows + o_m[:, None].to(tl.int64) * stride + o_c[None, :]
        b_sum += tl.load(pointers, mask=(o_m < rows)[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    return tl.sum(b_sum, axis=0)
