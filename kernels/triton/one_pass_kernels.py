"""The forward pass of the TED-Adapter in one launch, so that x, h and u are still in the cache when they are needed.

A program takes a ticket, which numbers the tiles of all stages, and does that one tile. Stages of a clip follow each
other some clips apart: while the down-projection works on clip i, later stages work on clip i - ahead. A tile waits
until the tiles of its clip that come before it have been counted as finished; these all have lower tickets, which
running programs hold. So the lowest unfinished tile never waits, and no assumption is made about which programs run at
the same time. What a tile computes depends on neither its program nor the order, so results repeat bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixer_kernels import mix_tile
from .projection import finish_projection, product
from .tiles import load, neighbour, tap, vector


@triton.jit
def wait_for(p_count, expected):
    """Until this many tiles have been reported; what they wrote may be read then."""
    while tl.atomic_add(p_count, 0, sem="acquire", scope="gpu") < expected:
        pass


@triton.jit
def report(p_count):
    """Count a tile as finished once all threads have written theirs."""
    tl.debug_barrier()
    tl.atomic_add(p_count, 1, sem="release", scope="gpu")


@triton.jit
def down_tile(
    p_x,
    p_down,
    p_bias,
    p_h,
    i_m,
    i_n,
    rows,
    columns,
    dim,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write a tile of h of one clip, p_x and p_h being at its first row."""
    b_h = product(
        p_x,
        p_down,
        i_m,
        i_n,
        rows,
        columns,
        dim,
        1,
        dim,
        PRECISION,
        EVEN_C,
        EVEN_D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    finish_projection(
        b_h, i_n * BLOCK_N, i_m, p_h, p_bias, p_bias, p_h, p_h, rows, columns, 1, 1.0, False, BIAS, False, False, False
    )


@triton.jit
def mixed_rows(
    p_h,  # at the clip's first token and the branch's first column
    temporal,
    difference,
    i_m,
    o_c,
    sizes,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """[BLOCK_M, BLOCK_C] of u in fp32: rows of one clip, from several frames; h is read once for every tap."""
    frames, tokens, grid_height, grid_width, width, columns = sizes
    o_m = tl.arange(0, BLOCK_M)
    m_m, m_c = o_m < frames * tokens - i_m * BLOCK_M, o_c < width
    o_t, o_p = (i_m * BLOCK_M + o_m) // tokens, (i_m * BLOCK_M + o_m) % tokens
    p_tile = p_h + i_m.to(tl.int64) * BLOCK_M * columns
    frame_size = tokens * columns
    b_u = tl.zeros([BLOCK_M, o_c.shape[0]], dtype=tl.float32)
    # Loops at run time: a tile is large, and only one of its neighbours has room in the registers.
    if TEMPORAL:
        b_u += vector(temporal[1], o_c, m_c)
        for k in range(3):
            m_there = m_m & (o_t + k > 0) & (o_t + k <= frames)
            b_there = load(p_tile + (k - 1) * frame_size, o_m, o_c, m_there, m_c, columns)
            b_u += b_there.to(tl.float32) * tap(temporal[0], k, o_c, m_c, 3)
        if PATCHES_ONLY:
            b_u = tl.where((o_p > 0)[:, None], b_u, 0.0)
    if DIFFERENCE:
        m_patch = m_m & (o_p >= CLASS)
        o_y, o_x = (o_p - CLASS) // grid_width, (o_p - CLASS) % grid_width
        b_down = vector(difference[2], o_c, m_c)
        b_change = tl.zeros([BLOCK_M, o_c.shape[0]], dtype=tl.float32)
        b_change += vector(difference[1], o_c, m_c)
        for k in range(9):
            m_there = neighbour(o_y, o_x, m_patch, grid_height, grid_width, k // 3 - 1, k % 3 - 1)
            m_both = m_there & (o_t > 0)
            p_there = p_tile + ((k // 3 - 1) * grid_width + (k % 3 - 1)) * columns
            b_there = load(p_there, o_m, o_c, m_both, m_c, columns).to(tl.float32)
            b_before = load(p_there - frame_size, o_m, o_c, m_both, m_c, columns).to(tl.float32)
            b_there = tl.where(m_there[:, None], b_there - b_before + b_down, 0.0)
            b_change += b_there * tap(difference[0], k, o_c, m_c, 9)
        b_u += tl.where(m_patch[:, None], b_change, 0.0)
    return b_u


@triton.jit(do_not_specialize=["ahead"])
def one_pass_narrow_kernel(
    p_x,
    p_down,  # (C, D)
    p_bias,  # (C,)
    p_h,
    p_te_taps,  # (R, 3)
    p_te_bias,
    p_td_taps,  # (R, 9)
    p_td_bias,
    p_down_bias,
    p_up,  # (D, C)
    p_up_bias,  # (D,), in every row
    p_patch_bias,  # in patch rows besides
    p_y,
    p_counts,  # int32 zeros: tickets, then tiles of the down-projection by clip
    clips,
    ahead,
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    dim,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
    UP_BIAS: tl.constexpr,
    PATCH_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_C: tl.constexpr,  # whether BLOCK_C is C
    EVEN_D: tl.constexpr,  # whether BLOCK_K divides D
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # columns of y at a time
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,  # all columns of h
    BLOCK_R: tl.constexpr,  # all channels of a branch
):
    """Two stages: down-projection; mixer and up-projection of all columns, with u in registers."""
    rows = frames * tokens
    blocks_m = tl.cdiv(rows, BLOCK_M)
    i_ticket = tl.atomic_add(p_counts, 1)
    i_step, i_m = i_ticket // (2 * blocks_m), i_ticket % (2 * blocks_m)
    if i_m < blocks_m:
        if i_step < clips:
            o_clip = i_step.to(tl.int64) * rows
            down_tile(
                p_x + o_clip * dim,
                p_down,
                p_bias,
                p_h + o_clip * columns,
                i_m,
                0,
                rows,
                columns,
                dim,
                BIAS,
                PRECISION,
                EVEN_C,
                EVEN_D,
                BLOCK_M,
                BLOCK_C,
                BLOCK_K,
            )
            report(p_counts + 1 + i_step)
    elif i_step >= ahead:
        i_clip, i_m = i_step - ahead, i_m - blocks_m
        wait_for(p_counts + 1 + i_clip, blocks_m)
        o_clip = i_clip.to(tl.int64) * rows
        p_h += o_clip * columns
        sizes = (frames, tokens, grid_height, grid_width, width, columns)
        temporal, difference = (p_te_taps, p_te_bias), (p_td_taps, p_td_bias, p_down_bias)
        o_r = tl.arange(0, BLOCK_R)
        m_r = o_r < width
        APART: tl.constexpr = TEMPORAL and DIFFERENCE and not SHARED
        dtype: tl.constexpr = p_y.dtype.element_ty
        if APART:
            b_u = mixed_rows(p_h, temporal, difference, i_m, o_r, sizes, True, False, CLASS, PATCHES_ONLY, BLOCK_M)
            b_te = b_u.to(dtype)
            p_td = p_h + width
            b_u = mixed_rows(p_td, temporal, difference, i_m, o_r, sizes, False, True, CLASS, False, BLOCK_M)
            b_td = b_u.to(dtype)
        else:
            b_u = mixed_rows(
                p_h, temporal, difference, i_m, o_r, sizes, TEMPORAL, DIFFERENCE, CLASS, PATCHES_ONLY, BLOCK_M
            )
            b_te = b_u.to(dtype)
        for n in range(0, dim, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            m_up = m_r[:, None] & (o_n < dim)[None, :]
            p_tile = p_up + (o_r[:, None] + o_n[None, :] * columns)
            b_y = tl.dot(b_te, tl.load(p_tile, mask=m_up, other=0.0), input_precision=PRECISION)
            if APART:
                b_y = tl.dot(b_td, tl.load(p_tile + width, mask=m_up, other=0.0), b_y, input_precision=PRECISION)
            finish_projection(
                b_y,
                n,
                i_m,
                p_x + o_clip * dim,
                p_up_bias,
                p_patch_bias,
                p_y + o_clip * dim,
                p_y,
                rows,
                dim,
                tokens,
                1.0,
                RESIDUAL,
                UP_BIAS,
                PATCH_BIAS,
                CLASS > 0,
                False,
            )


@triton.jit(do_not_specialize=["ahead"])
def one_pass_wide_kernel(
    p_x,
    p_down,  # (C, D)
    p_bias,  # (C,)
    p_h,
    p_te_taps,  # (R, 3)
    p_te_bias,
    p_td_taps,  # (R, 9)
    p_td_bias,
    p_down_bias,
    p_u,
    p_up,  # (D, C)
    p_up_bias,  # (D,), in every row
    p_patch_bias,  # in patch rows besides
    p_y,
    p_counts,  # int32 zeros: tickets, then by clip the tiles of the down-projection, then by clip those of the mixer
    clips,
    ahead,
    blocks_c,  # of the mixer, all branches
    frames,
    tokens,
    grid_height,
    grid_width,
    width,
    columns,
    dim,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    TEMPORAL: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    SHARED: tl.constexpr,
    CLASS: tl.constexpr,
    PATCHES_ONLY: tl.constexpr,
    UP_BIAS: tl.constexpr,
    PATCH_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_C: tl.constexpr,  # whether BLOCK_N and BLOCK_K divide C, and D
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,  # the mixer's tile
    BLOCK_C: tl.constexpr,
):
    """Three stages: down-projection, mixer, up-projection."""
    rows = frames * tokens
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_h, blocks_y = tl.cdiv(columns, BLOCK_N), tl.cdiv(dim, BLOCK_N)
    downs, mixes, ups = blocks_m * blocks_h, tl.cdiv(tokens, BLOCK_P) * blocks_c, blocks_m * blocks_y
    i_ticket = tl.atomic_add(p_counts, 1)
    i_step, i_tile = i_ticket // (downs + mixes + ups), i_ticket % (downs + mixes + ups)
    p_down_counts, p_mix_counts = p_counts + 1, p_counts + 1 + clips
    if i_tile < downs:
        if i_step < clips:
            o_clip = i_step.to(tl.int64) * rows
            down_tile(
                p_x + o_clip * dim,
                p_down,
                p_bias,
                p_h + o_clip * columns,
                i_tile // blocks_h,
                i_tile % blocks_h,
                rows,
                columns,
                dim,
                BIAS,
                PRECISION,
                EVEN_C,
                EVEN_D,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            report(p_down_counts + i_step)
    elif i_tile < downs + mixes:
        i_clip, i_tile = i_step - ahead, i_tile - downs
        if (i_clip >= 0) & (i_clip < clips):
            wait_for(p_down_counts + i_clip, downs)
            mix_tile(
                i_clip,
                i_tile // blocks_c,
                i_tile % blocks_c,
                p_h,
                p_u,
                (p_te_taps, p_te_bias),
                (p_td_taps, p_td_bias, p_down_bias),
                (frames, tokens, grid_height, grid_width, width, columns),
                TEMPORAL,
                DIFFERENCE,
                SHARED,
                CLASS,
                PATCHES_ONLY,
                BLOCK_P,
                BLOCK_C,
            )
            report(p_mix_counts + i_clip)
    else:
        i_clip, i_tile = i_step - 2 * ahead, i_tile - downs - mixes
        if i_clip >= 0:
            wait_for(p_mix_counts + i_clip, mixes)
            o_clip = i_clip.to(tl.int64) * rows
            i_m, i_n = i_tile // blocks_y, i_tile % blocks_y
            b_y = product(
                p_u + o_clip * columns,
                p_up,
                i_m,
                i_n,
                rows,
                dim,
                columns,
                1,
                columns,
                PRECISION,
                EVEN_D,
                EVEN_C,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            finish_projection(
                b_y,
                i_n * BLOCK_N,
                i_m,
                p_x + o_clip * dim,
                p_up_bias,
                p_patch_bias,
                p_y + o_clip * dim,
                p_y,
                rows,
                dim,
                tokens,
                1.0,
                RESIDUAL,
                UP_BIAS,
                PATCH_BIAS,
                CLASS > 0,
                False,
            )
