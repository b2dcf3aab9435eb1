"""The mixer of the TED-Adapter: everything between its two projections, one read and one write of h.

A program holds all frames of a tile of tokens for a block of channels of one branch, or of both where they share their
columns. Both branches are linear, so neither takes the difference of two frames before its convolution: the temporal
one slides over three frames in registers, and the 3x3 convolution of frame t less that of frame t-1 is the convolution
of their difference. A frame's own values are loaded one frame ahead, which hides the memory behind the arithmetic;
neighbours then come from the cache. Accumulation is in fp32.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import difference_bias, load, shifted, store, taps_of, tile, vector


@triton.jit
def mix(
    p_h,  # at the clip's first token and the branch's first column, as p_u
    p_u,
    temporal,  # pointers: taps (R, 3) and bias (R,), as the parameters have them
    difference,  # pointers: taps (R, 9), bias (R,) and the down-projection's bias (R,)
    o_p,
    o_c,
    sizes,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
):
    """Write u of one tile for all frames of a clip."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    m_p, m_c = o_p < tokens, o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    b_zero = tl.zeros([o_p.shape[0], o_c.shape[0]], dtype=tl.float32)
    if TEMPORAL:
        te_taps = taps_of(temporal[0], o_c, m_c, 3, False)
        b_bias = vector(temporal[1], o_c, m_c)
        b_before = b_zero
    if DIFFERENCE:
        here = tile(o_p, o_c, tokens, width, columns, grid_height, grid_width, CLASS)
        m_patch = here[4]
        td_taps = taps_of(difference[0], o_c, m_c, 9, False)
        b_constant = difference_bias(difference[1], difference[2], td_taps, here)
        b_last = b_zero
    b_here = load(p_h, o_p, o_c, m_p, m_c, columns)
    for t in range(frames):
        m_after = o_p < tl.where(t + 1 < frames, tokens, 0)
        b_after = load(p_h + frame_size, o_p, o_c, m_after, m_c, columns)
        b_u = b_zero
        if TEMPORAL:
            b_u = b_before * te_taps[0] + b_here.to(tl.float32) * te_taps[1] + b_after.to(tl.float32) * te_taps[2]
            b_u += b_bias
            if PATCHES_ONLY:
                b_u = tl.where((o_p > 0)[:, None], b_u, 0.0)
            b_before = b_here.to(tl.float32)
        if DIFFERENCE:
            b_conv = b_zero
            for k in tl.static_range(9):
                b_conv += shifted(p_h, b_here, here, k) * td_taps[k]
            b_change = tl.where(t > 0, b_conv - b_last, 0.0) + b_constant
            b_u += tl.where(m_patch[:, None], b_change, 0.0)
            b_last = b_conv
        store(p_u, o_p, o_c, m_p, m_c, columns, b_u)
        b_here = b_after
        p_h += frame_size
        p_u += frame_size


@triton.jit
def mix_tile(
    i_clip,
    i_p,
    i_c,  # blocks of channels; with two branches in columns of their own TE's come first
    p_h,
    p_u,
    temporal,
    difference,
    sizes,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,  # both branches in the same columns, summed
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,  # the temporal branch leaves out class tokens, too
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write u of one tile of tokens and channels."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    o_clip = i_clip.to(tl.int64) * frames * tokens * columns
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    if TEMPORAL and DIFFERENCE and not SHARED:
        blocks_c = tl.cdiv(width, BLOCK_C)
        if i_c < blocks_c:
            mix(p_h + o_clip, p_u + o_clip, temporal, difference, o_p, o_c, sizes, True, False, CLASS, PATCHES_ONLY)
        else:
            o_c -= blocks_c * BLOCK_C
            o_clip += width
            mix(p_h + o_clip, p_u + o_clip, temporal, difference, o_p, o_c, sizes, False, True, CLASS, False)
    else:
        p_h += o_clip
        p_u += o_clip
        mix(p_h, p_u, temporal, difference, o_p, o_c, sizes, TEMPORAL, DIFFERENCE, CLASS, PATCHES_ONLY)


@triton.jit
def mixer_forward_kernel(
    p_h,
    p_u,
    p_te_taps,  # (R, 3)
    p_te_bias,
    p_td_taps,  # (R, 9)
    p_td_bias,
    p_down_bias,
    blocks_c,  # of all branches
    blocks_p,
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_tile = tl.program_id(0) // blocks_c
    temporal, difference = (p_te_taps, p_te_bias), (p_td_taps, p_td_bias, p_down_bias)
    mix_tile(
        i_tile // blocks_p,
        i_tile % blocks_p,
        tl.program_id(0) % blocks_c,
        p_h,
        p_u,
        temporal,
        difference,
        (frames, tokens, grid_height, grid_width, width, columns),
        TEMPORAL,
        DIFFERENCE,
        SHARED,
        CLASS,
        PATCHES_ONLY,
        BLOCK_P,
        BLOCK_C,
    )
