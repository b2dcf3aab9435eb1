"""The mixer of the TED-Adapter: everything between its two projections, one read and one write of h.

A program holds all frames of a tile of tokens for a block of channels of one branch, or of both where they share their
columns. Both branches are linear, so neither takes the difference of two frames before its convolution: the temporal
one slides over three frames in registers, and the 3x3 convolution of frame t less that of frame t-1 is the convolution
of their difference. A frame's own values are loaded one frame ahead, which hides the memory behind the arithmetic;
neighbours then come from the cache. The backward kernel works the same way on du. Accumulation is in fp32; weight
gradients leave as one partial sum a program, so that no atomics are needed.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import difference_bias, load, shifted, store, taps_of, tile


@triton.jit
def mix(
    p_h,  # at the clip's first token and the branch's first column, as p_u
    p_u,
    temporal,  # pointers: taps (3, R) and bias (R,)
    difference,  # pointers: taps (9, R), bias (R,) and the down-projection's bias (R,)
    o_p,
    o_c,
    sizes,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CLASS: tl.constexpr,
):
    """Write u of one tile for all frames of a clip."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    m_p, m_c = o_p < tokens, o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    b_zero = tl.zeros([o_p.shape[0], o_c.shape[0]], dtype=tl.float32)
    if TEMPORAL:
        te_taps = taps_of(temporal[0], width, o_c, m_c, 3, False)
        b_bias = tl.load(temporal[1] + o_c, mask=m_c, other=0.0)[None, :]
        b_before = b_zero
    if DIFFERENCE:
        here = tile(o_p, o_c, tokens, width, columns, grid_height, grid_width, CLASS)
        m_patch = here[4]
        td_taps = taps_of(difference[0], width, o_c, m_c, 9, False)
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
            mix(p_h + o_clip, p_u + o_clip, temporal, difference, o_p, o_c, sizes, True, False, CLASS)
        else:
            o_c -= blocks_c * BLOCK_C
            o_clip += width
            mix(p_h + o_clip, p_u + o_clip, temporal, difference, o_p, o_c, sizes, False, True, CLASS)
    else:
        mix(p_h + o_clip, p_u + o_clip, temporal, difference, o_p, o_c, sizes, TEMPORAL, DIFFERENCE, CLASS)


@triton.jit
def mixer_forward_kernel(
    p_h,
    p_u,
    p_te_taps,  # (3, R) fp32
    p_te_bias,
    p_td_taps,  # (9, R) fp32
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
        BLOCK_P,
        BLOCK_C,
    )


@triton.jit
def temporal_backward(
    p_h, p_du, p_dh, p_taps, p_sums, first, last, o_c, sizes, WEIGHTS: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Write dh of the tiles from first to last of a clip, and their sums in rows 0 to 4: three taps, du, dh."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    m_c = o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    taps = taps_of(p_taps, width, o_c, m_c, 3, True)
    b_zero = tl.zeros([BLOCK_P, o_c.shape[0]], dtype=tl.float32)
    sums = (b_zero, b_zero, b_zero, b_zero, b_zero)
    for i_p in range(first, last):
        o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
        o_frame = tl.cast(0, tl.int64)
        b_du_before, b_h_before = b_zero, b_zero
        b_du = load(p_du, o_p, o_c, o_p < tokens, m_c, columns)
        if WEIGHTS:
            b_h = load(p_h, o_p, o_c, o_p < tokens, m_c, columns)
        for t in range(frames):
            o_after = o_frame + frame_size
            m_after = o_p < tl.where(t + 1 < frames, tokens, 0)
            b_du_after = load(p_du + o_after, o_p, o_c, m_after, m_c, columns)
            b_here = b_du.to(tl.float32)
            b_dh = b_du_before * taps[0] + b_here * taps[1] + b_du_after.to(tl.float32) * taps[2]
            store(p_dh + o_frame, o_p, o_c, o_p < tokens, m_c, columns, b_dh)
            if WEIGHTS:
                b_h_after = load(p_h + o_after, o_p, o_c, m_after, m_c, columns)
                sums = (
                    sums[0] + b_here * b_h_before,
                    sums[1] + b_here * b_h.to(tl.float32),
                    sums[2] + b_here * b_h_after.to(tl.float32),
                    sums[3] + b_here,
                    sums[4] + b_dh,
                )
                b_h_before = b_h.to(tl.float32)
                b_h = b_h_after
            b_du_before = b_here
            b_du = b_du_after
            o_frame = o_after
    if WEIGHTS:
        for row in tl.static_range(5):
            tl.store(p_sums + row * width + o_c, tl.sum(sums[row], axis=0), mask=m_c)


@triton.jit
def difference_backward(
    p_h,
    p_du,
    p_dh,
    p_taps,
    p_down_bias,
    p_sums,
    first,
    last,
    o_c,
    sizes,
    WEIGHTS: tl.constexpr,
    ADD: tl.constexpr,  # to the dh that the temporal branch has left in the same columns
    CLASS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write dh of the tiles from first to last of a clip, and their sums in rows 5 to 15: nine taps, du, bias.

    dh of frame t is the transposed convolution of du of frame t less that of frame t+1, so it is complete one frame
    later. The difference of h is taken with its bias, which a neighbour outside the grid does not have either.
    """
    frames, tokens, grid_height, grid_width, width, columns = sizes
    m_c = o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    taps = taps_of(p_taps, width, o_c, m_c, 9, True)
    b_zero = tl.zeros([BLOCK_P, o_c.shape[0]], dtype=tl.float32)
    sums = (b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero)
    b_sum_du, b_sum_down = b_zero, b_zero
    if WEIGHTS:
        b_down = tl.load(p_down_bias + o_c, mask=m_c, other=0.0)[None, :]
    for i_p in range(first, last):
        o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
        here = tile(o_p, o_c, tokens, width, columns, grid_height, grid_width, CLASS)
        m_patch = here[4]
        o_frame = tl.cast(0, tl.int64)
        b_conv_last, b_h_last = b_zero, b_zero
        b_du = load(p_du, o_p, o_c, m_patch, m_c, columns)
        if WEIGHTS:
            b_h = load(p_h, o_p, o_c, m_patch, m_c, columns)
        for t in range(frames):
            o_after = o_frame + frame_size
            m_after = m_patch & (o_p < tl.where(t + 1 < frames, tokens, 0))
            b_du_after = load(p_du + o_after, o_p, o_c, m_after, m_c, columns)
            if WEIGHTS:
                b_h_after = load(p_h + o_after, o_p, o_c, m_after, m_c, columns)
                b_delta = tl.where(t > 0, b_h.to(tl.float32) - b_h_last, 0.0) + b_down
                b_h_last = b_h.to(tl.float32)
                b_h = b_h_after
                b_sum_du += b_du.to(tl.float32)
            b_conv = b_zero
            added = ()
            for k in tl.static_range(9):
                b_there = shifted(p_du + o_frame, b_du, here, k)
                b_conv += b_there * taps[k]
                if WEIGHTS:
                    added += (sums[k] + b_there * b_delta,)
            if WEIGHTS:
                sums = added
                b_sum_down += b_conv
            o_before = o_frame - frame_size
            m_before = o_p < tl.where(t > 0, tokens, 0)
            b_dh = tl.where(t > 1, b_conv_last, 0.0) - b_conv
            if ADD:
                b_dh += load(p_dh + o_before, o_p, o_c, m_before, m_c, columns).to(tl.float32)
            store(p_dh + o_before, o_p, o_c, m_before, m_c, columns, b_dh)
            b_conv_last = b_conv
            b_du = b_du_after
            o_frame = o_after
        o_frame -= frame_size
        b_dh = tl.where(frames > 1, b_conv_last, 0.0)
        if ADD:
            b_dh += load(p_dh + o_frame, o_p, o_c, o_p < tokens, m_c, columns).to(tl.float32)
        store(p_dh + o_frame, o_p, o_c, o_p < tokens, m_c, columns, b_dh)
    if WEIGHTS:
        for k in tl.static_range(9):  # the transpose's taps are the convolution's, from the last to the first
            tl.store(p_sums + (13 - k) * width + o_c, tl.sum(sums[k], axis=0), mask=m_c)
        tl.store(p_sums + 14 * width + o_c, tl.sum(b_sum_du, axis=0), mask=m_c)
        tl.store(p_sums + 15 * width + o_c, tl.sum(b_sum_down, axis=0), mask=m_c)


@triton.jit
def mixer_backward_kernel(
    p_h,
    p_du,
    p_dh,
    p_te_taps,  # (3, R) fp32
    p_td_taps,  # (9, R) fp32
    p_down_bias,
    p_sums,  # (groups of tiles over all clips, 16, R) fp32
    blocks_c,  # of all branches
    groups,
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,
    WEIGHTS: tl.constexpr,  # whether weight gradients are needed, and with them h
    CLASS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,  # a program works through these many tiles of tokens and sums over them
):
    i_group = tl.program_id(0) // blocks_c
    i_c = tl.program_id(0) % blocks_c
    first = i_group % groups * TILES
    last = min(first + TILES, tl.cdiv(tokens, BLOCK_P))
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    sizes = (frames, tokens, grid_height, grid_width, width, columns)
    o_clip = (i_group // groups).to(tl.int64) * frames * tokens * columns
    p_sums += i_group.to(tl.int64) * 16 * width
    p_h += o_clip
    p_du += o_clip
    p_dh += o_clip
    if TEMPORAL and DIFFERENCE and not SHARED:
        blocks_te = tl.cdiv(width, BLOCK_C)
        if i_c < blocks_te:
            temporal_backward(p_h, p_du, p_dh, p_te_taps, p_sums, first, last, o_c, sizes, WEIGHTS, BLOCK_P)
        else:
            o_c -= blocks_te * BLOCK_C
            difference_backward(
                p_h + width,
                p_du + width,
                p_dh + width,
                p_td_taps,
                p_down_bias,
                p_sums,
                first,
                last,
                o_c,
                sizes,
                WEIGHTS,
                False,
                CLASS,
                BLOCK_P,
            )
    else:
        if TEMPORAL:
            temporal_backward(p_h, p_du, p_dh, p_te_taps, p_sums, first, last, o_c, sizes, WEIGHTS, BLOCK_P)
        if DIFFERENCE:
            if TEMPORAL:
                tl.debug_barrier()  # dh is read back, by other threads than those that wrote it
            difference_backward(
                p_h,
                p_du,
                p_dh,
                p_td_taps,
                p_down_bias,
                p_sums,
                first,
                last,
                o_c,
                sizes,
                WEIGHTS,
                TEMPORAL,
                CLASS,
                BLOCK_P,
            )
