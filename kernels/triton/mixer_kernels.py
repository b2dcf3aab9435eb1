"""The mixer of the TED-Adapter: everything between its two projections, one read and one write of h.

A program holds all frames of a tile of tokens for a block of channels. Both branches are linear, so neither takes the
difference of two frames before its convolution: the temporal one slides over three frames in registers, and the 3x3
convolution of frame t less that of frame t-1 is the convolution of their difference. Neighbouring patches come from the
cache. The backward kernel works the same way on du, and sums by parts: Σ_t du_t (h_t - h_{t-1}) = Σ_t h_t (du_t -
du_{t+1}). Accumulation is in fp32; weight gradients leave as one partial sum a program, so that no atomics are needed.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    difference_bias,
    load,
    neighbour,
    patch,
    program,
    shifted,
    spatial,
    store,
    sum_to,
    tap,
)


@triton.jit
def mixer_forward_kernel(
    p_h,
    p_u,
    p_te_taps,  # (3, R) fp32
    p_te_bias,
    p_td_taps,  # (9, R) fp32
    p_td_bias,
    p_down_bias,
    blocks_c,
    blocks_p,
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,  # both branches in the same columns, summed
    CLASS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_c, i_p, i_clip, i_tile = program(blocks_c, blocks_p)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_c = o_p < tokens, o_c < width
    o_y, o_x, m_patch = patch(o_p, tokens, grid_height, grid_width, CLASS)
    frame_size = tl.cast(tokens, tl.int64) * columns
    o_frame = i_clip.to(tl.int64) * frames * frame_size
    TD_COLUMN = 0 if SHARED or not TEMPORAL else 1
    if TEMPORAL:
        b_tap0 = tl.load(p_te_taps + o_c, mask=m_c, other=0.0)[None, :]
        b_tap1 = tl.load(p_te_taps + width + o_c, mask=m_c, other=0.0)[None, :]
        b_tap2 = tl.load(p_te_taps + 2 * width + o_c, mask=m_c, other=0.0)[None, :]
        b_bias = tl.load(p_te_bias + o_c, mask=m_c, other=0.0)[None, :]
        b_before = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
        b_here = load(p_h + o_frame, o_p, o_c, m_p, m_c, columns)
    if DIFFERENCE:
        b_constant = difference_bias(
            p_td_taps, p_td_bias, p_down_bias, o_y, o_x, o_c, m_patch, m_c, width, grid_height, grid_width
        )
        b_last = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for t in range(frames):
        b_u = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
        if TEMPORAL:
            m_after = o_p < tl.where(t + 1 < frames, tokens, 0)
            b_after = load(p_h + o_frame + frame_size, o_p, o_c, m_after, m_c, columns)
            b_u = b_before * b_tap0 + b_here * b_tap1 + b_after * b_tap2 + b_bias
            b_before = b_here
            b_here = b_after
            if not SHARED or not DIFFERENCE:
                store(p_u + o_frame, o_p, o_c, m_p, m_c, columns, b_u)
        if DIFFERENCE:
            p_frame = p_h + o_frame + TD_COLUMN * width
            b_conv = spatial(
                p_frame, p_td_taps, o_p, o_y, o_x, o_c, m_patch, m_c, columns, width, grid_height, grid_width, False
            )
            b_change = tl.where(t > 0, b_conv - b_last, 0.0) + b_constant
            b_last = b_conv
            b_change = tl.where(m_patch[:, None], b_change, 0.0)
            if SHARED and TEMPORAL:
                b_change += b_u
            store(p_u + o_frame + TD_COLUMN * width, o_p, o_c, m_p, m_c, columns, b_change)
        o_frame += frame_size


@triton.jit
def temporal_backward_kernel(
    p_h,
    p_du,
    p_u,
    p_dh,
    p_taps,
    p_bias,
    p_sums,
    blocks_c,
    blocks_p,
    frames,
    tokens,
    width,
    columns,
    MIX: tl.constexpr,  # write u as well
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_c, i_p, i_clip, i_tile = program(blocks_c, blocks_p)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_c = o_p < tokens, o_c < width
    frame_size = tl.cast(tokens, tl.int64) * columns
    o_frame = i_clip.to(tl.int64) * frames * frame_size
    b_tap0 = tl.load(p_taps + o_c, mask=m_c, other=0.0)[None, :]
    b_tap1 = tl.load(p_taps + width + o_c, mask=m_c, other=0.0)[None, :]
    b_tap2 = tl.load(p_taps + 2 * width + o_c, mask=m_c, other=0.0)[None, :]
    b_bias = tl.load(p_bias + o_c, mask=m_c, other=0.0)[None, :]
    b_zero = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    b_sum0, b_sum1, b_sum2, b_sum_bias, b_sum_down = b_zero, b_zero, b_zero, b_zero, b_zero
    b_h_before, b_du_before = b_zero, b_zero
    b_h = load(p_h + o_frame, o_p, o_c, m_p, m_c, columns)
    b_du = load(p_du + o_frame, o_p, o_c, m_p, m_c, columns)
    for t in range(frames):
        m_after = o_p < tl.where(t + 1 < frames, tokens, 0)
        b_h_after = load(p_h + o_frame + frame_size, o_p, o_c, m_after, m_c, columns)
        b_du_after = load(p_du + o_frame + frame_size, o_p, o_c, m_after, m_c, columns)
        b_dh = b_du_before * b_tap2 + b_du * b_tap1 + b_du_after * b_tap0
        store(p_dh + o_frame, o_p, o_c, m_p, m_c, columns, b_dh)
        if MIX:
            b_u = b_h_before * b_tap0 + b_h * b_tap1 + b_h_after * b_tap2 + b_bias
            store(p_u + o_frame, o_p, o_c, m_p, m_c, columns, b_u)
        b_sum0 += b_du * b_h_before
        b_sum1 += b_du * b_h
        b_sum2 += b_du * b_h_after
        b_sum_bias += b_du
        b_sum_down += b_dh
        b_h_before = b_h
        b_h = b_h_after
        b_du_before = b_du
        b_du = b_du_after
        o_frame += frame_size
    p_own = p_sums + i_tile.to(tl.int64) * 24 * width
    sum_to(p_own, 0, width, o_c, m_c, b_sum0)
    sum_to(p_own, 1, width, o_c, m_c, b_sum1)
    sum_to(p_own, 2, width, o_c, m_c, b_sum2)
    sum_to(p_own, 3, width, o_c, m_c, b_sum_bias)
    sum_to(p_own, 4, width, o_c, m_c, b_sum_down)


@triton.jit
def difference_backward_kernel(
    p_h,
    p_du,
    p_u,
    p_dh,
    p_taps,
    p_bias,
    p_down_bias,
    p_sums,
    blocks_c,
    blocks_p,
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    MIX: tl.constexpr,  # write u as well
    ADD: tl.constexpr,  # add to the u and dh that the temporal branch has left in the same columns
    CLASS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_c, i_p, i_clip, i_tile = program(blocks_c, blocks_p)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_p, m_c = o_p < tokens, o_c < width
    o_y, o_x, m_patch = patch(o_p, tokens, grid_height, grid_width, CLASS)
    frame_size = tl.cast(tokens, tl.int64) * columns
    o_frame = i_clip.to(tl.int64) * frames * frame_size
    b_constant = difference_bias(
        p_taps, p_bias, p_down_bias, o_y, o_x, o_c, m_patch, m_c, width, grid_height, grid_width
    )
    b_zero = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    b_sum0, b_sum1, b_sum2, b_sum3, b_sum4 = b_zero, b_zero, b_zero, b_zero, b_zero
    b_sum5, b_sum6, b_sum7, b_sum8, b_total = b_zero, b_zero, b_zero, b_zero, b_zero
    b_last = b_zero
    b_du = load(p_du + o_frame, o_p, o_c, m_patch, m_c, columns)
    b_here = spatial(
        p_du + o_frame, p_taps, o_p, o_y, o_x, o_c, m_patch, m_c, columns, width, grid_height, grid_width, True
    )
    for t in range(frames):
        m_after = m_patch & (o_p < tl.where(t + 1 < frames, tokens, 0))
        b_du_after = load(p_du + o_frame + frame_size, o_p, o_c, m_after, m_c, columns)
        b_e = tl.where(t > 0, b_du, 0.0) - b_du_after
        b_total += b_du
        p_frame = p_h + o_frame
        b_h = shifted(p_frame, 0, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv = b_h * tap(p_taps, 0, width, o_c, m_c)
        b_sum0 += b_e * b_h
        b_h = shifted(p_frame, 1, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 1, width, o_c, m_c)
        b_sum1 += b_e * b_h
        b_h = shifted(p_frame, 2, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 2, width, o_c, m_c)
        b_sum2 += b_e * b_h
        b_h = shifted(p_frame, 3, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 3, width, o_c, m_c)
        b_sum3 += b_e * b_h
        b_h = shifted(p_frame, 4, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 4, width, o_c, m_c)
        b_sum4 += b_e * b_h
        b_h = shifted(p_frame, 5, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 5, width, o_c, m_c)
        b_sum5 += b_e * b_h
        b_h = shifted(p_frame, 6, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 6, width, o_c, m_c)
        b_sum6 += b_e * b_h
        b_h = shifted(p_frame, 7, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 7, width, o_c, m_c)
        b_sum7 += b_e * b_h
        b_h = shifted(p_frame, 8, o_p, o_y, o_x, o_c, m_patch, m_c, columns, grid_height, grid_width)
        b_conv += b_h * tap(p_taps, 8, width, o_c, m_c)
        b_sum8 += b_e * b_h
        if MIX:
            b_u = tl.where(t > 0, b_conv - b_last, 0.0) + b_constant
            b_u = tl.where(m_patch[:, None], b_u, 0.0)
            if ADD:
                b_u += load(p_u + o_frame, o_p, o_c, m_p, m_c, columns)
            store(p_u + o_frame, o_p, o_c, m_p, m_c, columns, b_u)
            b_last = b_conv
        b_dh = tl.where(t > 0, b_here, 0.0)
        if t + 1 < frames:
            b_here = spatial(
                p_du + o_frame + frame_size,
                p_taps,
                o_p,
                o_y,
                o_x,
                o_c,
                m_patch,
                m_c,
                columns,
                width,
                grid_height,
                grid_width,
                True,
            )
            b_dh -= b_here
        if ADD:
            b_dh += load(p_dh + o_frame, o_p, o_c, m_p, m_c, columns)
        store(p_dh + o_frame, o_p, o_c, m_p, m_c, columns, b_dh)
        b_du = b_du_after
        o_frame += frame_size
    p_own = p_sums + i_tile.to(tl.int64) * 24 * width
    sum_to(p_own, 5, width, o_c, m_c, b_sum0)
    sum_to(p_own, 6, width, o_c, m_c, b_sum1)
    sum_to(p_own, 7, width, o_c, m_c, b_sum2)
    sum_to(p_own, 8, width, o_c, m_c, b_sum3)
    sum_to(p_own, 9, width, o_c, m_c, b_sum4)
    sum_to(p_own, 10, width, o_c, m_c, b_sum5)
    sum_to(p_own, 11, width, o_c, m_c, b_sum6)
    sum_to(p_own, 12, width, o_c, m_c, b_sum7)
    sum_to(p_own, 13, width, o_c, m_c, b_sum8)
    sum_to(p_own, 14, width, o_c, m_c, b_total)
    for k in tl.static_range(9):
        m_k = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
        sum_to(p_own, 15 + k, width, o_c, m_c, tl.where(m_k[:, None], b_total, 0.0))
