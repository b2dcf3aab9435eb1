"""Gradients of the mixer of the TED-Adapter: dh of du in one pass, and with it the weights'.

A program works as in mixer_kernels.py, on du. Weight gradients leave as one partial sum a program, so that no atomics
are needed; another kernel adds them up in a fixed order.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import column_sum, load, shifted, store, taps_of, tile, vector


@triton.jit
def temporal_backward(
    p_h,
    p_du,
    p_dh,
    p_taps,
    p_sums,
    first,
    last,
    o_c,
    sizes,
    WEIGHTS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write dh of the tiles from first to last of a clip, and their sums in rows 0 to 4: three taps, du, dh."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    m_c = o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    taps = taps_of(p_taps, o_c, m_c, 3, True)
    b_zero = tl.zeros([BLOCK_P, o_c.shape[0]], dtype=tl.float32)
    sums = (b_zero, b_zero, b_zero, b_zero, b_zero)
    for i_p in range(first, last):
        o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
        o_own = tl.where(o_p > 0, o_p, tokens) if PATCHES_ONLY else o_p  # a class token counts as none
        o_frame = tl.cast(0, tl.int64)
        b_du_before, b_h_before = b_zero, b_zero
        b_du = load(p_du, o_p, o_c, o_own < tokens, m_c, columns)
        if WEIGHTS:
            b_h = load(p_h, o_p, o_c, o_own < tokens, m_c, columns)
        for t in range(frames):
            o_after = o_frame + frame_size
            m_after = o_own < tl.where(t + 1 < frames, tokens, 0)
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
    taps = taps_of(p_taps, o_c, m_c, 9, True)
    b_zero = tl.zeros([BLOCK_P, o_c.shape[0]], dtype=tl.float32)
    sums = (b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero)
    b_sum_du, b_sum_down = b_zero, b_zero
    if WEIGHTS:
        b_down = vector(p_down_bias, o_c, m_c)
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
                    added += (sums[k] + b_there * b_delta,)  # type: ignore[assignment]
            if WEIGHTS:
                sums = added  # type: ignore[assignment]
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
    p_te_taps,  # (R, 3)
    p_td_taps,  # (R, 9)
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
    PATCHES_ONLY: tl.constexpr,
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
            temporal_backward(
                p_h, p_du, p_dh, p_te_taps, p_sums, first, last, o_c, sizes, WEIGHTS, PATCHES_ONLY, BLOCK_P
            )
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
            temporal_backward(
                p_h, p_du, p_dh, p_te_taps, p_sums, first, last, o_c, sizes, WEIGHTS, PATCHES_ONLY, BLOCK_P
            )
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


@triton.jit(do_not_specialize=["rows"])
def mixer_gradients_kernel(
    p_sums,  # (rows, 16, R) fp32
    p_te_taps,  # (R, 3), and so on: gradients as the parameters have them
    p_te_bias,
    p_te_down,
    p_td_taps,  # (R, 9)
    p_td_bias,
    p_td_down,
    rows,
    width,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum the partial sums of a backward pass; what they are sums of is said where they are written."""
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    i_sum, o_r = o_c // width, o_c % width
    m_c = (i_sum < (16 if DIFFERENCE else 5)) & (i_sum >= (0 if TEMPORAL else 5))
    b_sum = column_sum(p_sums, rows, 16 * width, o_c, m_c, BLOCK_M)
    if TEMPORAL:
        if SHARED and DIFFERENCE:  # one down-projection for both
            b_sum += column_sum(p_sums + 11 * width, rows, 16 * width, o_c, m_c & (i_sum == 4), BLOCK_M)
        tl.store(p_te_taps + o_r * 3 + i_sum, b_sum, mask=m_c & (i_sum < 3))
        tl.store(p_te_bias + o_r, b_sum, mask=m_c & (i_sum == 3))
        tl.store(p_te_down + o_r, b_sum, mask=m_c & (i_sum == 4))
    if DIFFERENCE:
        tl.store(p_td_taps + o_r * 9 + (i_sum - 5), b_sum, mask=m_c & (i_sum >= 5) & (i_sum < 14))
        tl.store(p_td_bias + o_r, b_sum, mask=m_c & (i_sum == 14))
        if not SHARED:
            tl.store(p_td_down + o_r, b_sum, mask=m_c & (i_sum == 15))
