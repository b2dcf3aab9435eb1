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

from .mixer_kernels import mix_frames, mix_patches
from .projection import finish_projection, product
from .tiles import channels, load, table_row, widen


@triton.jit
def wait_for(p_count, expected):
    """Until this many tiles have been reported; what they wrote may be read then.

    Polls are relaxed, since an acquire empties the multiprocessor's cache each time; one follows when the wait is over,
    by the thread that polls, and a barrier hands it on to the others.
    """
    while tl.atomic_add(p_count, 0, sem="relaxed", scope="gpu") < expected:
        pass
    tl.atomic_add(p_count, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def report(p_count):
    """Count a tile as finished once all threads have written theirs."""
    tl.debug_barrier()
    tl.atomic_add(p_count, 1, sem="release", scope="gpu")


@triton.jit
def down_tile(p_x, p_down, p_bias, p_h, i_m, i_n, sizes, BLOCKS: tl.constexpr):
    """Write a tile of h of one clip, p_x and p_h being at its first row; sizes are its rows, C, D."""
    rows, columns, dim = sizes
    b_h = product(p_x, p_down, i_m, i_n, sizes, (1, dim), BLOCKS)
    finish_projection(b_h, i_n * BLOCKS.N, i_m, p_h, (None, p_bias, None, None), (rows, columns, 1), 1.0, False)


@triton.jit
def mixed_rows(
    p_h,
    p_temporal,
    p_difference,
    i_m,
    o_c,
    frames,
    tokens,
    grid_height,
    grid_width,
    LAYOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """[BLOCK_M, BLOCK_C] of u in fp32: rows of one clip, from several frames; h is read once for every tap.

    p_h is at the clip's first token and the branch's first column; weights are the mixer's tables, None of a branch
    that is off.
    """
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    WIDTH: tl.constexpr = LAYOUT.WIDTH
    o_m = tl.arange(0, BLOCK_M)
    m_m, m_c = o_m < frames * tokens - i_m * BLOCK_M, o_c < WIDTH
    o_t, o_p = (i_m * BLOCK_M + o_m) // tokens, (i_m * BLOCK_M + o_m) % tokens
    p_tile = p_h + i_m.to(tl.int64) * BLOCK_M * COLUMNS
    frame_size = tokens * COLUMNS
    b_u = tl.zeros([BLOCK_M, o_c.shape[0]], dtype=tl.float32)
    # Loops at run time: a tile is large, and only one of its neighbours has room in the registers.
    if p_temporal is not None:
        b_u += table_row(p_temporal, 3, o_c, m_c, WIDTH)
        for k in range(3):
            m_there = m_m & (o_t + k > 0) & (o_t + k <= frames)
            b_there = load(p_tile + (k - 1) * frame_size, o_m, o_c, m_there[:, None] & m_c[None, :], COLUMNS)
            b_u += widen(b_there) * table_row(p_temporal, k, o_c, m_c, WIDTH)
        if LAYOUT.PATCHES_ONLY:
            b_u = tl.where((o_p > 0)[:, None], b_u, 0.0)
    if p_difference is not None:
        m_patch = m_m & (o_p >= LAYOUT.CLASS)
        o_y, o_x = (o_p - LAYOUT.CLASS) // grid_width, (o_p - LAYOUT.CLASS) % grid_width
        o_row = 9 + tl.where(o_y > 0, 1, 0) + tl.where(o_y + 1 < grid_height, 2, 0)
        o_row += tl.where(o_x > 0, 4, 0) + tl.where(o_x + 1 < grid_width, 8, 0)
        b_change = load(p_difference, o_row, o_c, m_patch[:, None] & m_c[None, :], WIDTH)
        for k in range(9):
            o_there_y, o_there_x = o_y + (k // 3 - 1), o_x + (k % 3 - 1)
            m_there = m_patch & (o_t > 0) & (o_there_y >= 0) & (o_there_y < grid_height)
            m_there = (m_there & (o_there_x >= 0) & (o_there_x < grid_width))[:, None] & m_c[None, :]
            p_there = p_tile + ((k // 3 - 1) * grid_width + (k % 3 - 1)) * COLUMNS
            b_there = widen(load(p_there, o_m, o_c, m_there, COLUMNS))
            b_there -= widen(load(p_there - frame_size, o_m, o_c, m_there, COLUMNS))
            b_change += b_there * table_row(p_difference, k, o_c, m_c, WIDTH)
        b_u += b_change
    return b_u


@triton.jit(do_not_specialize=["clips", "ahead", "frames", "tokens", "grid_height", "grid_width"])
def one_pass_narrow_kernel(
    p_x,
    down,  # weight (C, D), bias (C,) or None
    p_h,
    p_temporal,  # the mixer's tables
    p_difference,
    up,  # weight (D, C); biases (D,) in every row, and in patch rows besides, or None
    p_y,
    p_counts,  # int32 zeros: tickets, then tiles of the down-projection by clip
    clips,
    ahead,
    frames,
    tokens,
    grid_height,
    grid_width,
    dim,
    RESIDUAL: tl.constexpr,
    LAYOUT: tl.constexpr,
    DOWN: tl.constexpr,  # blocks of the down-projection, N all columns of h
    BLOCK_N: tl.constexpr,  # columns of y at a time
    BLOCK_R: tl.constexpr,  # all channels of a branch
):
    """Two stages: down-projection; mixer and up-projection of all columns, with u in registers."""
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    WIDTH: tl.constexpr = LAYOUT.WIDTH
    APART: tl.constexpr = COLUMNS > WIDTH
    BLOCK_M: tl.constexpr = DOWN.M
    rows = frames * tokens
    blocks_m = tl.cdiv(rows, BLOCK_M)
    i_ticket = tl.atomic_add(p_counts, 1, sem="relaxed", scope="gpu")
    i_step, i_m = i_ticket // (2 * blocks_m), i_ticket % (2 * blocks_m)
    if i_m < blocks_m:
        if i_step < clips:
            o_clip = i_step.to(tl.int64) * rows
            sizes_h = rows, COLUMNS, dim
            down_tile(p_x + o_clip * dim, down[0], down[1], p_h + o_clip * COLUMNS, i_m, 0, sizes_h, DOWN)
            report(p_counts + 1 + i_step)
    elif i_step >= ahead:
        i_clip, i_m = i_step - ahead, i_m - blocks_m
        wait_for(p_counts + 1 + i_clip, blocks_m)
        o_clip = i_clip.to(tl.int64) * rows
        p_h += o_clip * COLUMNS
        o_r = tl.arange(0, BLOCK_R)
        m_r = o_r < WIDTH
        dtype: tl.constexpr = p_y.dtype.element_ty
        grid = frames, tokens, grid_height, grid_width
        if APART:
            b_te = mixed_rows(p_h, p_temporal, None, i_m, o_r, *grid, LAYOUT, BLOCK_M).to(dtype)
            b_td = mixed_rows(p_h + WIDTH, None, p_difference, i_m, o_r, *grid, LAYOUT, BLOCK_M).to(dtype)
        else:
            b_te = mixed_rows(p_h, p_temporal, p_difference, i_m, o_r, *grid, LAYOUT, BLOCK_M).to(dtype)
        added = p_x + o_clip * dim if RESIDUAL else None, up[1], up[2], None
        for n in range(0, dim, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            m_up = m_r[:, None] & (o_n < dim)[None, :]
            p_tile = up[0] + (o_r[:, None] + o_n[None, :] * COLUMNS)
            b_y = tl.dot(b_te, tl.load(p_tile, mask=m_up, other=0.0))
            if APART:
                b_y = tl.dot(b_td, tl.load(p_tile + WIDTH, mask=m_up, other=0.0), b_y)
            finish_projection(b_y, n, i_m, p_y + o_clip * dim, added, (rows, dim, tokens), 1.0, LAYOUT.CLASS)


@triton.jit(
    do_not_specialize=["clips", "ahead", "temporal_tiles", "mixes", "frames", "tokens", "grid_height", "grid_width"]
)
def one_pass_wide_kernel(
    p_x,
    down,  # weight (C, D), bias (C,) or None
    p_h,
    p_temporal,  # the mixer's tables
    p_difference,
    p_u,
    up,  # weight (D, C); biases (D,) in every row, and in patch rows besides, or None
    p_y,
    p_counts,  # int32 zeros: tickets, then by clip the tiles of the down-projection, then by clip those of the mixer
    clips,
    ahead,
    temporal_tiles,  # of the mixer in a clip: of the temporal branch in columns of its own,
    mixes,  # and all
    frames,
    tokens,
    grid_height,
    grid_width,
    dim,
    RESIDUAL: tl.constexpr,
    LAYOUT: tl.constexpr,
    DOWN: tl.constexpr,  # blocks of the down-projection
    UP: tl.constexpr,  # blocks of the up-projection
    BLOCK_P: tl.constexpr,  # the mixer's tile
    BLOCK_C: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    """Three stages: down-projection, mixer, up-projection."""
    COLUMNS: tl.constexpr = LAYOUT.COLUMNS
    rows = frames * tokens
    blocks_m = tl.cdiv(rows, DOWN.M)
    blocks_h, blocks_y = tl.cdiv(COLUMNS, DOWN.N), tl.cdiv(dim, UP.N)
    downs, ups = blocks_m * blocks_h, blocks_m * blocks_y
    i_ticket = tl.atomic_add(p_counts, 1, sem="relaxed", scope="gpu")
    i_step, i_tile = i_ticket // (downs + mixes + ups), i_ticket % (downs + mixes + ups)
    p_down_counts, p_mix_counts = p_counts + 1, p_counts + 1 + clips
    if i_tile < downs:
        if i_step < clips:
            o_clip = i_step.to(tl.int64) * rows
            i_m, i_n = i_tile // blocks_h, i_tile % blocks_h
            sizes_h = rows, COLUMNS, dim
            down_tile(p_x + o_clip * dim, down[0], down[1], p_h + o_clip * COLUMNS, i_m, i_n, sizes_h, DOWN)
            report(p_down_counts + i_step)
    elif i_tile < downs + mixes:
        i_clip, i_tile = i_step - ahead, i_tile - downs
        if (i_clip >= 0) & (i_clip < clips):
            wait_for(p_down_counts + i_clip, downs)
            o_clip = i_clip.to(tl.int64) * rows * COLUMNS
            if i_tile < temporal_tiles:
                o_c, m_c, i_p = channels(i_tile, LAYOUT.WIDTH, BLOCK_C)
                o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
                if p_temporal is not None:
                    mix_frames(p_h + o_clip, p_u + o_clip, p_temporal, o_p, o_c, m_c, frames, tokens, LAYOUT)
            elif p_difference is not None:
                o_c, m_c, i_g = channels(i_tile - temporal_tiles, LAYOUT.WIDTH, BLOCK_C)
                o_clip += COLUMNS - LAYOUT.WIDTH
                SHARED: tl.constexpr = COLUMNS == LAYOUT.WIDTH
                mix_patches(
                    p_h + o_clip,
                    p_u + o_clip,
                    p_temporal if SHARED else None,
                    p_difference,
                    i_g,
                    o_c,
                    m_c,
                    frames,
                    tokens,
                    grid_height,
                    grid_width,
                    LAYOUT,
                    BLOCK_P // ADJACENT,
                    ADJACENT,
                )
            report(p_mix_counts + i_clip)
    else:
        i_clip, i_tile = i_step - 2 * ahead, i_tile - downs - mixes
        if i_clip >= 0:
            wait_for(p_mix_counts + i_clip, mixes)
            o_clip = i_clip.to(tl.int64) * rows
            i_m, i_n = i_tile // blocks_y, i_tile % blocks_y
            b_y = product(p_u + o_clip * COLUMNS, up[0], i_m, i_n, (rows, dim, COLUMNS), (1, COLUMNS), UP)
            added = p_x + o_clip * dim if RESIDUAL else None, up[1], up[2], None
            p_clip = p_y + o_clip * dim
            finish_projection(b_y, i_n * UP.N, i_m, p_clip, added, (rows, dim, tokens), 1.0, LAYOUT.CLASS)
