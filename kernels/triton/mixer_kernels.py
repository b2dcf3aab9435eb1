"""The mixer of the TED-Adapter: everything between its two projections, one read and one write of h.

A program holds all frames of a tile of tokens for a block of channels. Each branch is a kernel of its own, since a
kernel takes as many registers as its hungriest part; where both share their columns, the difference branch's kernel
computes both. The branches are linear, so neither takes the difference of two frames before its convolution: the
temporal one slides over three frames in registers, and the 3x3 convolution of frame t less that of frame t-1 is the
convolution of their difference. A frame's own values are loaded one frame ahead, which hides the memory behind the
arithmetic; neighbours then come from the cache. Accumulation is in fp32.

Weights are fp32 tables, which ted_weights.py prepares: (4, R) of the temporal branch, three taps and the bias; (25, R)
of the difference branch, nine taps, and for each of the sixteen sets of neighbours that a patch may have (1 above, 2
below, 4 left, 8 right) the convolution of the down-projection's bias over them, plus the branch's own bias.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    add_line,
    channels,
    differences,
    line,
    load,
    own,
    patches,
    store,
    store_group,
    sums,
    table_row,
    widen,
    window,
    zeros,
)


@triton.jit
def mix_frames(p_h, p_u, p_temporal, o_p, o_c, m_c, frames, tokens, LAYOUT: tl.constexpr):
    """Temporal branch: write u of the tokens o_p of a clip; p_h and p_u are at its first token and first column."""
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    frame_size = tokens * COLUMNS
    m_tile = (o_p < tokens)[:, None] & m_c[None, :]
    taps = temporal_table(p_temporal, o_c, m_c, LAYOUT.WIDTH)
    b_before = tl.zeros([o_p.shape[0], o_c.shape[0]], dtype=tl.float32)
    b_here = widen(load(p_h, o_p, o_c, m_tile, COLUMNS))
    for t in range(frames):
        m_after = (o_p < tl.where(t + 1 < frames, tokens, 0))[:, None] & m_c[None, :]
        b_after = widen(load(p_h + frame_size, o_p, o_c, m_after, COLUMNS))
        b_u = b_before * taps[0] + b_here * taps[1] + b_after * taps[2] + taps[3]
        if LAYOUT.PATCHES_ONLY:
            b_u = tl.where((o_p > 0)[:, None], b_u, 0.0)
        store(p_u, o_p, o_c, m_tile, b_u, COLUMNS)
        b_before = b_here
        b_here = b_after
        p_h += frame_size
        p_u += frame_size


@triton.jit
def temporal_table(p_temporal, o_c, m_c, WIDTH: tl.constexpr):
    """Three taps and the bias, [1, BLOCK_C] each."""
    table = ()
    for k in tl.static_range(4):
        table += (table_row(p_temporal, k, o_c, m_c, WIDTH),)  # type: ignore[assignment]
    return table


@triton.jit
def convolve(p_frame, b_own, here, taps, COLUMNS: tl.constexpr):
    """A tuple of [BLOCK_G, BLOCK_C] fp32: the 3x3 convolution of a frame at each patch of a group."""
    b_sums = zeros(b_own)
    for dy in tl.static_range(3):
        b_line = line(p_frame, b_own, here, dy, COLUMNS)
        b_sums = add_line(b_sums, b_line, taps[3 * dy], taps[3 * dy + 1], taps[3 * dy + 2])
    return b_sums


@triton.jit
def constants_of(p_difference, p_temporal, here, o_c, m_c, grid_height, grid_width, WIDTH: tl.constexpr):
    """A tuple of [BLOCK_G, BLOCK_C] fp32: what each patch of a group gets beside the products with h."""
    _, _, m_line, o_y, o_x = here
    o_row = 9 + tl.where(o_y > 0, 1, 0) + tl.where(o_y + 1 < grid_height, 2, 0)
    b_constants = ()
    for i in tl.static_range(len(m_line) - 2):
        o_beside = tl.where(o_x + i > 0, 4, 0) + tl.where(o_x + i + 1 < grid_width, 8, 0)
        b_constant = load(p_difference, o_row + o_beside, o_c, m_line[1], WIDTH)
        if p_temporal is not None:
            b_constant += table_row(p_temporal, 3, o_c, m_c, WIDTH)
        b_constants += (b_constant,)  # type: ignore[assignment]
    return b_constants


@triton.jit
def mix_patches(
    p_h,
    p_u,
    p_temporal,  # where it shares the columns, else None
    p_difference,
    i_g,
    o_c,
    m_c,
    frames,
    tokens,
    grid_height,
    grid_width,
    LAYOUT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    """Difference branch, or both: write u of a block of groups; p_h and p_u are at the first token and first column."""
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    WIDTH: tl.constexpr = LAYOUT.WIDTH
    frame_size = tokens * COLUMNS
    if LAYOUT.CLASS:
        stop = tl.where(i_g == 0, frames, 0)
        mix_class_tokens(p_h, p_u, p_temporal, o_c, m_c, frames, stop, frame_size, LAYOUT, BLOCK_G)
    here = patches(i_g, o_c, m_c, grid_height, grid_width, LAYOUT, BLOCK_G, ADJACENT)
    taps = window(p_difference, here, o_c, m_c, WIDTH, False)
    b_constants = constants_of(p_difference, p_temporal, here, o_c, m_c, grid_height, grid_width, WIDTH)
    b_own = own(p_h, here, COLUMNS)
    b_conv = convolve(p_h, b_own, here, taps, COLUMNS)
    b_after = own(p_h + tl.where(frames > 1, frame_size, 0), here, COLUMNS)
    b_u = b_constants
    if p_temporal is not None:
        te = temporal_table(p_temporal, o_c, m_c, WIDTH)
        b_u = add_frames(b_u, te, zeros(b_own), b_own, b_after, frames > 1)
    store_group(p_u, b_u, here, COLUMNS)
    for t in range(1, frames):
        p_h += frame_size
        p_u += frame_size
        # Read from the cache for every frame: kept, they would take eight registers of a thread.
        b_constants = constants_of(p_difference, p_temporal, here, o_c, m_c, grid_height, grid_width, WIDTH)
        b_rest = differences(b_constants, b_conv)
        b_before = b_own
        b_own = b_after
        b_after = own(p_h + tl.where(t + 1 < frames, frame_size, 0), here, COLUMNS)
        b_conv = convolve(p_h, b_own, here, taps, COLUMNS)
        b_u = sums(b_conv, b_rest)
        if p_temporal is not None:
            b_u = add_frames(b_u, te, b_before, b_own, b_after, t + 1 < frames)
        store_group(p_u, b_u, here, COLUMNS)


@triton.jit
def add_frames(b_u, te, b_before, b_own, b_after, last):
    """The temporal convolution of a group's patches, added to b_u."""
    added = ()
    for i in tl.static_range(len(b_u)):
        b_sum = b_u[i] + b_before[i] * te[0] + b_own[i] * te[1]
        added += (b_sum + tl.where(last, b_after[i], 0.0) * te[2],)
    return added


@triton.jit
def mix_class_tokens(
    p_h, p_u, p_temporal, o_c, m_c, frames, stop, frame_size, LAYOUT: tl.constexpr, BLOCK_T: tl.constexpr
):
    """u of a clip's class tokens, of frames below stop, in columns that the difference branch has alone or shares."""
    for first in range(0, stop, BLOCK_T):
        o_t = first + tl.arange(0, BLOCK_T)
        b_u = tl.zeros([BLOCK_T, o_c.shape[0]], dtype=tl.float32)
        if p_temporal is not None and not LAYOUT.PATCHES_ONLY:
            te = temporal_table(p_temporal, o_c, m_c, LAYOUT.WIDTH)
            b_u += te[3]
            for k in tl.static_range(3):
                m_there = ((o_t + k > 0) & (o_t + k <= frames))[:, None] & m_c[None, :]
                b_u += widen(load(p_h + (k - 1) * frame_size, o_t, o_c, m_there, frame_size)) * te[k]
        store(p_u, o_t, o_c, (o_t < frames)[:, None] & m_c[None, :], b_u, frame_size)


@triton.jit(do_not_specialize=["blocks_p", "frames", "tokens"])
def temporal_forward_kernel(
    p_h,
    p_u,
    p_temporal,
    blocks_p,
    frames,
    tokens,
    LAYOUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    o_c, m_c, i_tile = channels(tl.program_id(0), LAYOUT.WIDTH, BLOCK_C)
    o_clip = (i_tile // blocks_p).to(tl.int64) * frames * tokens * LAYOUT.COLUMNS
    o_p = i_tile % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    mix_frames(p_h + o_clip, p_u + o_clip, p_temporal, o_p, o_c, m_c, frames, tokens, LAYOUT)


@triton.jit(do_not_specialize=["blocks_g", "frames", "tokens", "grid_height", "grid_width"])
def difference_forward_kernel(
    p_h,
    p_u,
    p_temporal,
    p_difference,
    blocks_g,
    frames,
    tokens,
    grid_height,
    grid_width,
    LAYOUT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    o_c, m_c, i_tile = channels(tl.program_id(0), LAYOUT.WIDTH, BLOCK_C)
    FIRST: tl.constexpr = LAYOUT.COLUMNS - LAYOUT.WIDTH  # beside the temporal branch's columns, or 0
    o_clip = (i_tile // blocks_g).to(tl.int64) * frames * tokens * LAYOUT.COLUMNS + FIRST
    mix_patches(
        p_h + o_clip,
        p_u + o_clip,
        p_temporal,
        p_difference,
        i_tile % blocks_g,
        o_c,
        m_c,
        frames,
        tokens,
        grid_height,
        grid_width,
        LAYOUT,
        BLOCK_G,
        ADJACENT,
    )
