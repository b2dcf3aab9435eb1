"""Gradients of the mixer of the TED-Adapter: dh of du in one pass, with it the weights', and u once more.

Programs work as in mixer_kernels.py, on du and h; weights come as the same tables. Weight gradients leave as one
partial sum a program, so that no atomics are needed; another kernel adds them up in a fixed order. p_sums, or p_u, is
None where they are not asked for.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixer_kernels import add_frames, constants_of, convolve, mix_class_tokens, temporal_table
from .tiles import (
    add_line,
    channels,
    column_sum,
    differences,
    line,
    load,
    moved,
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


@triton.jit(do_not_specialize=["groups", "frames", "tokens"])
def temporal_backward_kernel(
    p_h,
    p_du,
    p_dh,
    p_u,
    p_temporal,
    p_sums,  # (groups of tiles over all clips, 5, R) fp32
    groups,
    frames,
    tokens,
    LAYOUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    o_c, m_c, i_group = channels(tl.program_id(0), LAYOUT.WIDTH, BLOCK_C)
    frame_size = tokens * COLUMNS
    o_clip = (i_group // groups).to(tl.int64) * frames * frame_size
    taps = temporal_table(p_temporal, o_c, m_c, LAYOUT.WIDTH)
    b_zero = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    b_sums = (b_zero, b_zero, b_zero, b_zero, b_zero)
    o_p = i_group % groups * BLOCK_P + tl.arange(0, BLOCK_P)
    o_own = tl.where(o_p > 0, o_p, tokens) if LAYOUT.PATCHES_ONLY else o_p  # a class token counts as none
    m_all, m_own = (o_p < tokens)[:, None] & m_c[None, :], (o_own < tokens)[:, None] & m_c[None, :]
    o_frame = o_clip
    b_du_before, b_h_before = b_zero, b_zero
    b_du = widen(load(p_du + o_frame, o_p, o_c, m_own, COLUMNS))
    if p_sums is not None or p_u is not None:
        b_h = widen(load(p_h + o_frame, o_p, o_c, m_own, COLUMNS))
    for t in range(frames):
        o_after = o_frame + frame_size
        m_after = (o_own < tl.where(t + 1 < frames, tokens, 0))[:, None] & m_c[None, :]
        b_du_after = widen(load(p_du + o_after, o_p, o_c, m_after, COLUMNS))
        b_dh = b_du_before * taps[2] + b_du * taps[1] + b_du_after * taps[0]
        store(p_dh + o_frame, o_p, o_c, m_all, b_dh, COLUMNS)
        if p_sums is not None or p_u is not None:
            b_h_after = widen(load(p_h + o_after, o_p, o_c, m_after, COLUMNS))
        if p_u is not None:
            b_u = b_h_before * taps[0] + b_h * taps[1] + b_h_after * taps[2] + taps[3]
            if LAYOUT.PATCHES_ONLY:
                b_u = tl.where(m_own, b_u, 0.0)
            store(p_u + o_frame, o_p, o_c, m_all, b_u, COLUMNS)
        if p_sums is not None:
            b_sums = (
                b_sums[0] + b_du * b_h_before,
                b_sums[1] + b_du * b_h,
                b_sums[2] + b_du * b_h_after,
                b_sums[3] + b_du,
                b_sums[4] + b_dh,
            )
        if p_sums is not None or p_u is not None:
            b_h_before = b_h
            b_h = b_h_after
        b_du_before = b_du
        b_du = b_du_after
        o_frame = o_after
    if p_sums is not None:
        store_sums(p_sums + i_group.to(tl.int64) * 5 * LAYOUT.WIDTH, b_sums, o_c, m_c, LAYOUT.WIDTH)


@triton.jit
def store_sums(p_rows, b_sums, o_c, m_c, WIDTH: tl.constexpr):
    """Sums over the rows of some tiles, one after another."""
    for k in tl.static_range(len(b_sums)):
        tl.store(p_rows + k * WIDTH + o_c, tl.sum(b_sums[k], axis=0), mask=m_c)


@triton.jit
def transpose(p_du, b_du, b_change, b_taps, here, taps, COLUMNS: tl.constexpr):
    """The transposed 3x3 convolution of du at each patch of a group, and b_taps plus du times b_change.

    b_change is the difference of h at the group's patches, or None where no sums are needed; du of their neighbours is
    there anyway. The sums are in the order of the transpose's taps, which are the convolution's from the last to the
    first.
    """
    b_dh = zeros(b_du)
    added = ()
    for dy in tl.static_range(3):
        b_line = line(p_du, b_du, here, dy, COLUMNS)
        b_dh = add_line(b_dh, b_line, taps[3 * dy], taps[3 * dy + 1], taps[3 * dy + 2])
        for dx in tl.static_range(3):
            b_tap = b_taps[3 * dy + dx]
            if b_change is not None:
                for i in tl.static_range(len(b_du)):
                    b_tap += b_line[i + dx] * b_change[i]
            added += (b_tap,)  # type: ignore[assignment]
    return b_dh, added


@triton.jit
def beside(b_group, here, K: tl.constexpr):
    """The sum over a group's patches whose neighbour at the K-th place of a 3x3 window exists."""
    _, m_rows, m_line, _, _ = here
    b_sum = tl.zeros(b_group[0].shape, dtype=tl.float32)
    for i in tl.static_range(len(b_group)):
        b_sum += tl.where(m_rows[K // 3][:, None] & m_line[i + K % 3], b_group[i], 0.0)
    return b_sum


@triton.jit
def total(b_group):
    """The sum over all patches of a group."""
    b_sum = b_group[0]
    for i in tl.static_range(1, len(b_group)):
        b_sum += b_group[i]
    return b_sum


@triton.jit
def only(b_group, m_tile):
    """Zeros where the mask is off."""
    b_masked = ()
    for i in tl.static_range(len(b_group)):
        b_masked += (tl.where(m_tile, b_group[i], 0.0),)
    return b_masked


@triton.jit
def scaled(b_group, b_tap):
    b_scaled = ()
    for i in tl.static_range(len(b_group)):
        b_scaled += (b_group[i] * b_tap,)
    return b_scaled


@triton.jit
def add_correlations(b_taps, b_du, b_before, b_own, b_after, last):
    """Sums for the temporal taps, of which h of the frames before, at and after du's is taken."""
    b_0, b_1, b_2 = b_taps
    for i in tl.static_range(len(b_du)):
        b_0 += b_du[i] * b_before[i]
        b_1 += b_du[i] * b_own[i]
        b_2 += b_du[i] * tl.where(last, b_after[i], 0.0)
    return b_0, b_1, b_2


@triton.jit(do_not_specialize=["groups", "frames", "tokens", "clip_size", "grid_height", "grid_width"])
def difference_backward_kernel(
    p_h,
    p_du,
    p_dh,
    p_u,
    p_temporal,  # where it shares the columns, else None
    p_difference,
    p_down_bias,  # (R,) of any dtype
    p_sums,  # (groups of blocks over all clips, 11, R) fp32, with the temporal branch 15: its taps and du after them
    groups,
    frames,
    tokens,
    clip_size,  # frames * tokens * C: offsets in a clip have its type, which is 32 bits wide unless they are not enough
    grid_height,
    grid_width,
    LAYOUT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ADJACENT: tl.constexpr,
    EVEN: tl.constexpr,
):
    """dh of frame t is the transposed convolution of du of frame t less that of frame t+1, so it is complete one frame
    later. The down-projection's bias, which joins the difference of h, is taken in at the end: a tap's sum gets it
    times du of all patches that have a neighbour there, and so does its own gradient the tap.
    """
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    WIDTH: tl.constexpr = LAYOUT.WIDTH
    FIRST: tl.constexpr = COLUMNS - WIDTH  # beside the temporal branch's columns, or 0
    SUMS: tl.constexpr = p_sums is not None
    U: tl.constexpr = p_u is not None
    SHARED: tl.constexpr = p_temporal is not None
    o_c, m_c, i_group = channels(tl.program_id(0), WIDTH, BLOCK_C)
    i_g = i_group % groups
    frame_size = tokens * COLUMNS
    o_clip = (i_group // groups).to(tl.int64) * frames * frame_size + FIRST
    p_h += o_clip
    p_du += o_clip
    p_dh += o_clip
    if U:
        p_u += o_clip
    if SHARED:
        te = temporal_table(p_temporal, o_c, m_c, WIDTH)
    here = patches(i_g, o_c, m_c, grid_height, grid_width, LAYOUT, BLOCK_G, ADJACENT, EVEN)
    taps = window(p_difference, here, o_c, m_c, WIDTH, True)
    b_zero = tl.zeros([BLOCK_G, BLOCK_C], dtype=tl.float32)
    b_taps = (b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero, b_zero)
    b_te_taps = b_zero, b_zero, b_zero
    b_du = own(p_du, here, COLUMNS)
    b_sum_du = b_du
    b_before = zeros(b_du)
    b_last = zeros(b_du)
    if SUMS or U:
        b_h = own(p_h, here, COLUMNS)
    if SHARED:
        b_first = total(b_du)
        b_last = scaled(b_du, te[1])
        b_after = own(p_h + tl.where(frames > 1, frame_size, 0), here, COLUMNS)
        if SUMS:
            b_te_taps = add_correlations(b_te_taps, b_du, b_before, b_h, b_after, frames > 1)
    if U:
        u_taps = window(p_difference, here, o_c, m_c, WIDTH, False)
        b_constants = constants_of(p_difference, p_temporal, here, o_c, m_c, grid_height, grid_width, WIDTH)
        b_rest = differences(b_constants, convolve(p_h, b_h, here, u_taps, COLUMNS))
        b_u = b_constants
        if SHARED:
            b_u = add_frames(b_u, te, b_before, b_h, b_after, frames > 1)
        store_group(p_u, b_u, here, COLUMNS)
    p_dh_before = p_dh - frame_size
    # Two frames at a time, so that what one leaves to the next stays in its registers, where these are enough for that.
    AT_ONCE: tl.constexpr = 2 if p_h.dtype.element_ty.primitive_bitwidth == 16 and not SHARED else 1
    for o_frame in tl.range(frame_size, clip_size, frame_size, loop_unroll_factor=AT_ONCE):
        there = moved(here, o_frame)
        more = o_frame + frame_size < clip_size
        if SHARED:
            b_du_before = b_du
            b_after = own(p_h + tl.where(more, frame_size, 0), there, COLUMNS)
        if SUMS or U:
            b_before = b_h
            b_h = own(p_h, there, COLUMNS)
        if U:
            b_conv = convolve(p_h, b_h, there, u_taps, COLUMNS)
            b_u = sums(b_conv, b_rest)
            if SHARED:
                b_u = add_frames(b_u, te, b_before, b_h, b_after, more)
            store_group(p_u, b_u, there, COLUMNS)
            b_rest = differences(b_constants, b_conv)
        b_du = own(p_du, there, COLUMNS)
        b_change = differences(b_h, b_before) if SUMS else None
        b_dh, b_taps = transpose(p_du, b_du, b_change, b_taps, there, taps, COLUMNS)
        b_last = differences(b_last, b_dh)
        if SHARED:
            b_last = sums(b_last, scaled(b_du, te[0]))
        store_group(p_dh_before, b_last, there, COLUMNS)
        b_last = b_dh
        if SHARED:
            b_last = sums(b_last, sums(scaled(b_du, te[1]), scaled(b_du_before, te[2])))
        if SUMS:
            b_sum_du = sums(b_sum_du, b_du)
            if SHARED:
                b_te_taps = add_correlations(b_te_taps, b_du, b_before, b_h, b_after, more)
    store_group(p_dh_before + frames.to(tl.int64) * frame_size, b_last, here, COLUMNS)
    b_total = total(b_sum_du)
    b_te_down = b_zero
    if SHARED:
        b_te_down = b_total * te[1] + (b_total - b_first) * te[0] + (b_total - total(b_du)) * te[2]
    b_te_sums = only(b_te_taps + (b_total, b_te_down), here[1][1][:, None])
    b_total = b_te_sums[3]  # without class tokens
    if LAYOUT.CLASS:
        stop = tl.where(i_g == 0, frames, 0)
        if U:
            mix_class_tokens(p_h, p_u, p_temporal, o_c, m_c, frames, stop, frame_size, LAYOUT, BLOCK_G)
        if SHARED and not LAYOUT.PATCHES_ONLY:
            b_te_sums = class_tokens_backward(p_h, p_du, p_dh, te, b_te_sums, o_c, m_c, frames, stop, frame_size)
        else:
            mix_class_tokens(p_h, p_dh, None, o_c, m_c, frames, stop, frame_size, LAYOUT, BLOCK_G)
    if SUMS:
        b_down_bias = tl.load(p_down_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
        b_0, b_1, b_2, b_te_total, b_down = b_te_sums
        b_sums = ()
        for k in tl.static_range(9):
            b_there = beside(b_sum_du, here, k)
            b_down += b_there * table_row(p_difference, k, o_c, m_c, WIDTH)
            b_tap = tl.where(here[1][2 - k // 3][:, None], b_taps[8 - k], 0.0)
            b_sums += (b_tap + b_there * b_down_bias,)  # type: ignore[assignment]
        b_sums += (b_total, b_down)  # type: ignore[assignment]
        if SHARED:
            b_sums += (b_0, b_1, b_2, b_te_total)  # type: ignore[assignment]
        store_sums(p_sums + i_group.to(tl.int64) * len(b_sums) * WIDTH, b_sums, o_c, m_c, WIDTH)


@triton.jit
def class_tokens_backward(p_h, p_du, p_dh, te, b_sums, o_c, m_c, frames, stop, frame_size):
    """dh of a clip's class tokens of frames below stop, in shared columns, and b_sums with theirs: taps, du, dh."""
    b_0, b_1, b_2, b_sum_du, b_sum_dh = b_sums
    BLOCK_T: tl.constexpr = b_0.shape[0]
    for first in range(0, stop, BLOCK_T):
        o_t = first + tl.arange(0, BLOCK_T)
        m_before = ((o_t > 0) & (o_t <= frames))[:, None] & m_c[None, :]
        m_here = (o_t < frames)[:, None] & m_c[None, :]
        m_after = (o_t + 1 < frames)[:, None] & m_c[None, :]
        b_du = widen(load(p_du, o_t, o_c, m_here, frame_size))
        b_dh = b_du * te[1]
        b_dh += widen(load(p_du - frame_size, o_t, o_c, m_before, frame_size)) * te[2]
        b_dh += widen(load(p_du + frame_size, o_t, o_c, m_after, frame_size)) * te[0]
        b_dh = tl.where(m_here, b_dh, 0.0)
        store(p_dh, o_t, o_c, m_here, b_dh, frame_size)
        b_0 += b_du * widen(load(p_h - frame_size, o_t, o_c, m_before, frame_size))
        b_1 += b_du * widen(load(p_h, o_t, o_c, m_here, frame_size))
        b_2 += b_du * widen(load(p_h + frame_size, o_t, o_c, m_after, frame_size))
        b_sum_du += b_du
        b_sum_dh += b_dh
    return b_0, b_1, b_2, b_sum_du, b_sum_dh


@triton.jit(do_not_specialize=["temporal_rows", "difference_rows"])
def mixer_gradients_kernel(
    p_temporal_sums,  # rows of partial sums as the backward kernels write them, or None
    p_difference_sums,
    temporal,  # gradients as the parameters have them, or None: taps (R, 3), bias, and that of the down-projection
    difference,  # likewise: taps (R, 9), biases
    temporal_rows,
    difference_rows,
    width,
    SHARED: tl.constexpr,  # p_difference_sums has the temporal branch's sums as well
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum the partial sums of a backward pass, one block of columns a program, the temporal branch's first."""
    blocks = 0 if p_temporal_sums is None else tl.cdiv(5 * width, BLOCK_C)
    i_c = tl.program_id(0)
    if i_c < blocks:
        if p_temporal_sums is not None:
            o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
            b_sum = column_sum(p_temporal_sums, temporal_rows, 5 * width, o_c, o_c < 5 * width, BLOCK_M)
            store_branch(temporal, b_sum, o_c // width, o_c % width, 3)
    elif p_difference_sums is not None:
        ROWS: tl.constexpr = 15 if SHARED else 11
        o_c = (i_c - blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        b_sum = column_sum(p_difference_sums, difference_rows, ROWS * width, o_c, o_c < ROWS * width, BLOCK_M)
        store_branch(difference, b_sum, o_c // width, o_c % width, 9)
        if SHARED:
            i_sum = o_c // width - 11
            store_branch(temporal, b_sum, tl.where(i_sum < 0, 5, i_sum), o_c % width, 3)


@triton.jit
def store_branch(gradients, b_sum, i_sum, o_r, TAPS: tl.constexpr):
    """Store sums of numbers i_sum: those of taps, then the bias, then the down-projection's bias; None is left out."""
    p_taps, p_bias, p_down_bias = gradients
    tl.store(p_taps + o_r * TAPS + i_sum, b_sum, mask=i_sum < TAPS)
    tl.store(p_bias + o_r, b_sum, mask=i_sum == TAPS)
    if p_down_bias is not None:
        tl.store(p_down_bias + o_r, b_sum, mask=i_sum == TAPS + 1)
