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
def taps_of(p_taps, width, o_c, m_c, TAPS: tl.constexpr, FLIP: tl.constexpr):
    """A tuple of [1, BLOCK_C] taps of a convolution, in registers; with FLIP those of its transpose."""
    taps = ()
    for k in tl.static_range(TAPS):
        row = TAPS - 1 - k if FLIP else k
        taps += (tl.load(p_taps + row * width + o_c, mask=m_c, other=0.0)[None, :],)
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
    b_down = tl.load(p_down + o_c, mask=m_c, other=0.0)[None, :]
    b_sum = tl.zeros([o_p.shape[0], o_c.shape[0]], tl.float32) + tl.load(p_bias + o_c, mask=m_c, other=0.0)[None, :]
    for k in tl.static_range(9):
        m_there = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
        b_sum += tl.where(m_there[:, None], taps[k] * b_down, 0.0)
    return b_sum
