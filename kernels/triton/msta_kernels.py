"""The convolution over frames of msta_adapter, in the epilogue of a product and as a pass of its own, and its slopes.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs; N rows of tokens, D their width,
d the bottleneck's. A clip is `LEAD` tokens without a time, then `positions` tokens in each of `frames` frames, of which
the next frame is `frame_step` rows on and the next position `position_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .projection import PIECE, halves, place, product, tile, write_sum


@triton.jit
def load_tap(p_taps, o_d, m_d, TAP: tl.constexpr):
    """One of the three taps of these columns, fp32."""
    return tl.load(p_taps + o_d * 3 + TAP, mask=m_d, other=0.0).to(tl.float32)


@triton.jit
def finish_up(b_sum, column, i_m, p_h, p_y, added, rows, sizes, scale, SPREAD: tl.constexpr, LEAD: tl.constexpr):
    """Add biases, the convolution of h and, after the scale, base to the product from `column` on, and write."""
    p_up_bias, p_taps, p_conv_bias, p_base = added
    columns, width, clip_rows, frames, frame_step = sizes
    BLOCK_M: tl.constexpr = b_sum.shape[0]
    BLOCK_N: tl.constexpr = b_sum.shape[1]
    if BLOCK_N > PIECE // 2:  # three values of h for each of the output are many registers
        b_left, b_right = halves(b_sum)
        finish_up(b_left, column, i_m, p_h, p_y, added, rows, sizes, scale, SPREAD, LEAD)
        finish_up(b_right, column + BLOCK_N // 2, i_m, p_h, p_y, added, rows, sizes, scale, SPREAD, LEAD)
    else:
        o_first, o_tile, m_tile, o_n = place(i_m, column, rows, columns, BLOCK_M, BLOCK_N)
        o_m = tl.arange(0, BLOCK_M)
        o_in_clip = (i_m * BLOCK_M + o_m) % clip_rows - LEAD  # negative of a token without a time
        o_frame = o_in_clip // frame_step % frames
        m_timed = o_in_clip >= 0
        m_before = m_timed & (o_frame > 0)
        m_after = m_timed & (o_frame < frames - 1)
        m_n = o_n < columns
        # A channel of h feeds SPREAD columns next to each other, which read the same address.
        p_here = p_h + (i_m * BLOCK_M).to(tl.int64) * width + (o_m[:, None] * width + (o_n // SPREAD)[None, :])
        step = frame_step * width
        b_before = tl.load(p_here - step, mask=m_tile & m_before[:, None], other=0.0).to(tl.float32)
        b_here = tl.load(p_here, mask=m_tile & m_timed[:, None], other=0.0).to(tl.float32)
        b_after = tl.load(p_here + step, mask=m_tile & m_after[:, None], other=0.0).to(tl.float32)
        b_mixed = b_before * load_tap(p_taps, o_n, m_n, 0)[None, :]
        b_mixed += b_here * load_tap(p_taps, o_n, m_n, 1)[None, :]
        b_mixed += b_after * load_tap(p_taps, o_n, m_n, 2)[None, :]
        b_bias = tl.load(p_conv_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        if LEAD:
            b_bias = tl.where(m_timed[:, None], b_bias, 0.0)
        b_bias += tl.load(p_up_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_base = tl.load(p_base + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_y = (b_sum + b_mixed + b_bias) * scale + b_base
        tl.store(p_y + o_first + o_tile, b_y.to(p_y.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows", "clip_rows", "frames", "frame_step"])
def up_kernel(
    p_a,  # h (N, d), as all tensors of two dimensions contiguous; with p_up factors as in product
    p_up,  # (D, d)
    p_h,
    p_y,  # (N, D)
    added,  # up_bias (D,), taps (D, 3), conv_bias (D,), base (N, D)
    rows,
    shape,  # of p_up
    clip_rows,
    frames,
    frame_step,
    scale,
    SPREAD: tl.constexpr,  # columns of a channel of h, D / d
    LEAD: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """y = base + scale * (h Vᵀ + a + conv(h)), the convolution beside the up-projection."""
    columns, width = shape
    i_m, i_n = tile(rows, columns, BLOCKS)
    b_sum = product(p_a, p_up, i_m, i_n, (rows, columns, width), (1, width), BLOCKS)
    sizes = columns, width, clip_rows, frames, frame_step
    finish_up(b_sum, i_n * BLOCKS.N, i_m, p_h, p_y, added, rows, sizes, scale, SPREAD, LEAD)


@triton.jit
def finish_slope(b_sum, column, i_m, p_h, p_slope, p_sums, sizes, scale, ADD: tl.constexpr):
    """Write scale * (b_sum + what is there) where h is above 0, else 0, and sums of it; sizes are rows, width."""
    rows, width = sizes
    BLOCK_M: tl.constexpr = b_sum.shape[0]
    BLOCK_N: tl.constexpr = b_sum.shape[1]
    if BLOCK_N > PIECE // 2:
        b_left, b_right = halves(b_sum)
        finish_slope(b_left, column, i_m, p_h, p_slope, p_sums, sizes, scale, ADD)
        finish_slope(b_right, column + BLOCK_N // 2, i_m, p_h, p_slope, p_sums, sizes, scale, ADD)
    else:
        o_first, o_tile, m_tile, o_n = place(i_m, column, rows, width, BLOCK_M, BLOCK_N)
        b_h = tl.load(p_h + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        if ADD:
            b_sum += tl.load(p_slope + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_slope = tl.where(b_h <= 0, 0.0, b_sum * scale)  # rows past the last one have an h of 0
        tl.store(p_slope + o_first + o_tile, b_slope.to(p_slope.dtype.element_ty), mask=m_tile)
        if p_sums is not None:
            write_sum(p_sums, i_m, o_n, width, width, b_slope)


@triton.jit(do_not_specialize=["rows"])
def slope_kernel(
    p_dy,  # (N, K), as all tensors of two dimensions contiguous; with p_weight factors as in product
    p_weight,  # (K, R)
    p_h,  # (N, R), after its ReLU
    p_slope,  # (N, R), read only with ADD
    p_sums,  # (blocks of rows, R) fp32, or None
    rows,
    shape,  # of p_weight
    scale,
    ADD: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """slope = scale * (dy W + slope) through the ReLU that gave h, and its sums over each block of rows."""
    depth, width = shape
    i_m, i_n = tile(rows, width, BLOCKS)
    b_sum = product(p_dy, p_weight, i_m, i_n, (rows, width, depth), (width, 1), BLOCKS)
    finish_slope(b_sum, i_n * BLOCKS.N, i_m, p_h, p_slope, p_sums, (rows, width), scale, ADD)


@triton.jit(do_not_specialize=["clips", "frames", "positions", "position_step", "frame_step"])
def time_kernel(
    p_u,  # (N, D), as all tensors of two dimensions contiguous
    p_taps,  # (D, 3)
    p_bias,  # (D,)
    p_base,  # (N, D)
    p_y,
    clips,
    frames,
    positions,
    position_step,
    frame_step,
    columns,
    scale,
    LEAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = base + scale * (u + conv(u)), the convolution after the up-projection; every token is read once."""
    blocks = max(tl.cdiv(positions, BLOCK_P), 1)
    i_clip, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    o_d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_d = o_d < columns
    b_tap0 = load_tap(p_taps, o_d, m_d, 0)[None, :]
    b_tap1 = load_tap(p_taps, o_d, m_d, 1)[None, :] + 1  # what is convolved is added as well
    b_tap2 = load_tap(p_taps, o_d, m_d, 2)[None, :]
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    clip = i_clip.to(tl.int64) * (LEAD + frames * positions)
    if LEAD:
        o_lead = clip * columns + o_d
        m_lead = o_d < tl.where(i_block == 0, columns, 0)
        b_lead = tl.load(p_u + o_lead, mask=m_lead, other=0.0).to(tl.float32) * scale
        b_lead += tl.load(p_base + o_lead, mask=m_lead, other=0.0).to(tl.float32)
        tl.store(p_y + o_lead, b_lead.to(p_y.dtype.element_ty), mask=m_lead)
    o_p = i_block * BLOCK_P + tl.arange(0, BLOCK_P)
    o_tile = tl.arange(0, BLOCK_P)[:, None] * (position_step * columns) + o_d[None, :]
    o_row = (clip + LEAD + i_block * BLOCK_P * position_step) * columns
    m_here = (o_p < positions)[:, None] & m_d[None, :]
    b_here = tl.load(p_u + o_row + o_tile, mask=m_here, other=0.0).to(tl.float32)
    b_before = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for t in range(frames):
        o_next = o_row + frame_step * columns
        m_after = (o_p < tl.where(t + 1 < frames, positions, 0))[:, None] & m_d[None, :]
        b_after = tl.load(p_u + o_next + o_tile, mask=m_after, other=0.0).to(tl.float32)
        b_base = tl.load(p_base + o_row + o_tile, mask=m_here, other=0.0).to(tl.float32)
        b_y = b_base + (b_before * b_tap0 + b_here * b_tap1 + b_after * b_tap2 + b_bias) * scale
        tl.store(p_y + o_row + o_tile, b_y.to(p_y.dtype.element_ty), mask=m_here)
        o_row = o_next
        b_before = b_here
        b_here = b_after


@triton.jit(do_not_specialize=["clips", "frames", "positions", "position_step", "frame_step"])
def time_backward_kernel(
    p_dy,  # (N, D), as all tensors of two dimensions contiguous
    p_h,  # (N, C), what was convolved; read only with SUMS
    p_taps,  # (D, 3)
    p_dh,  # (N, C)
    p_sums,  # (programs, 5, D) fp32, written only with SUMS
    clips,
    frames,
    positions,
    position_step,
    frame_step,
    channels,
    SPREAD: tl.constexpr,  # columns of a channel, D / C
    LEAD: tl.constexpr,
    AFTER_UP: tl.constexpr,  # whether what is convolved is added as well
    SUMS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The transposed convolution over frames, dh, which reads every token once.

    Sums over tokens, a row each: dy times h one frame before, here and after; dy of tokens with a time; of all tokens
    the gradient of what the up-projection's bias enters, that is dh where the convolution comes after it, else dy.
    """
    columns = channels * SPREAD
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_s = tl.arange(0, BLOCK_S)
    o_d = o_c[:, None] * SPREAD + o_s[None, :]
    m_c = o_c < channels
    m_d = m_c[:, None] & (o_s < SPREAD)[None, :]
    b_tap0 = load_tap(p_taps, o_d, m_d, 0)[None, :, :]
    b_tap1 = load_tap(p_taps, o_d, m_d, 1)[None, :, :] + (1 if AFTER_UP else 0)
    b_tap2 = load_tap(p_taps, o_d, m_d, 2)[None, :, :]
    b_sum0 = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
    b_sum1 = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
    b_sum2 = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
    b_total = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
    b_slopes = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
    b_lead = tl.zeros([BLOCK_C, BLOCK_S], dtype=tl.float32)
    blocks = max(tl.cdiv(positions, BLOCK_P), 1)
    for i_task in range(tl.program_id(0), clips * blocks, tl.num_programs(0)):
        i_block = i_task % blocks
        clip = (i_task // blocks).to(tl.int64) * (LEAD + frames * positions)
        if LEAD:
            m_lead = m_d & (o_c < tl.where(i_block == 0, channels, 0))[:, None]
            b_own = tl.load(p_dy + clip * columns + o_d, mask=m_lead, other=0.0).to(tl.float32)
            b_lead += b_own
            b_dh = tl.sum(b_own, axis=1) if AFTER_UP else tl.zeros([BLOCK_C], dtype=tl.float32)
            p_lead = p_dh + clip * channels + o_c
            tl.store(p_lead, b_dh.to(p_dh.dtype.element_ty), mask=o_c < tl.where(i_block == 0, channels, 0))
        o_in_block = tl.arange(0, BLOCK_P)
        o_p = i_block * BLOCK_P + o_in_block
        o_dy = o_in_block[:, None, None] * (position_step * columns) + o_d[None, :, :]
        o_h = o_in_block[:, None] * (position_step * channels) + o_c[None, :]
        row = clip + LEAD + i_block * BLOCK_P * position_step
        m_dy = (o_p < positions)[:, None, None] & m_d[None, :, :]
        m_h = (o_p < positions)[:, None] & m_c[None, :]
        b_here = tl.load(p_dy + row * columns + o_dy, mask=m_dy, other=0.0).to(tl.float32)
        b_before = tl.zeros([BLOCK_P, BLOCK_C, BLOCK_S], dtype=tl.float32)
        b_h_before = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
        b_h_here = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
        if SUMS:
            b_h_here = tl.load(p_h + row * channels + o_h, mask=m_h, other=0.0).to(tl.float32)
        for t in range(frames):
            following = row + frame_step
            o_after = o_p < tl.where(t + 1 < frames, positions, 0)
            m_after = o_after[:, None, None] & m_d[None, :, :]
            b_after = tl.load(p_dy + following * columns + o_dy, mask=m_after, other=0.0).to(tl.float32)
            b_slope = b_before * b_tap2 + b_here * b_tap1 + b_after * b_tap0
            tl.store(p_dh + row * channels + o_h, tl.sum(b_slope, axis=2).to(p_dh.dtype.element_ty), mask=m_h)
            if SUMS:
                m_h_after = o_after[:, None] & m_c[None, :]
                b_h_after = tl.load(p_h + following * channels + o_h, mask=m_h_after, other=0.0).to(tl.float32)
                b_sum0 += b_here * b_h_before[:, :, None]
                b_sum1 += b_here * b_h_here[:, :, None]
                b_sum2 += b_here * b_h_after[:, :, None]
                b_total += b_here
                if AFTER_UP:
                    b_slopes += b_slope
                b_h_before = b_h_here
                b_h_here = b_h_after
            row = following
            b_before = b_here
            b_here = b_after
    if SUMS:
        p_own = p_sums + (tl.program_id(0) * 5).to(tl.int64) * columns + o_d
        b_time = tl.sum(b_total, axis=0)
        tl.store(p_own, tl.sum(b_sum0, axis=0), mask=m_d)
        tl.store(p_own + columns, tl.sum(b_sum1, axis=0), mask=m_d)
        tl.store(p_own + 2 * columns, tl.sum(b_sum2, axis=0), mask=m_d)
        tl.store(p_own + 3 * columns, b_time, mask=m_d)
        b_up = tl.sum(b_slopes, axis=0) if AFTER_UP else b_time
        tl.store(p_own + 4 * columns, b_up + b_lead, mask=m_d)
