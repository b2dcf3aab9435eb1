"""The contrastive losses: cosines, softmax and loss in one launch; loss_backward_kernels.py has the gradients.

A kernel never holds more than a tile of cosines: a program reduces its tile to a few numbers per row (maximum,
sum of exponentials, the slope's part), and the program that finishes last combines them in a fixed order, so that the
same bits come out whichever program that is. It finds out by counting arrivals, and leaves the counter at zero.

Exponentials are relative to that of a row's maximal logit: exp(s (c - c_max)), whose difference is exact where it
matters. Where the scale s is negative the maximal logit is that of the least cosine; kernels flip the signs of both.

The "state" that is left to the backward kernel is a row of fp32 vectors: one over the lengths of v (B) and of w (C),
the cosines of the maximal logits of the rows (B), one over the sums of exponentials (B) and the derivative of the loss
to the scale (1). Soft targets add the same two vectors of the columns (B, B) and the target's probabilities of a sample
with the same label and of one with another label (B, B). All matrices are contiguous. Rows of dot products are padded
with zeros to a multiple of PAD, so that the backward kernel loads several of them at once.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_LENGTH = tl.constexpr(1e-12)  # that of F.normalize
BELOW_ALL = tl.constexpr(-2.0)  # less than any cosine
# Of what a program finds about a row: its largest cosine, the sum of exponentials relative to that, the sum of cosines
# weighted with them and relative to it too, and the cosines of the target: with one class that of the class, with soft
# targets the sum of those with the same label and then the sum of the others.
LARGEST, SUM, WEIGHTED, OWN, OTHER = (tl.constexpr(i) for i in range(5))
ROW_PARTS, SOFT_PARTS = tl.constexpr(4), tl.constexpr(5)
PAD = tl.constexpr(16)
COMBINED_ROWS, COMBINED_PARTS = tl.constexpr(32), tl.constexpr(32)  # tile of the last program


@triton.jit
def cosine_tile(p_v, p_w, o_v, o_w, m_v, m_w, dim, BLOCK_K: tl.constexpr):
    """[M, N] dot products of rows of v and w, and one over their lengths, [M] and [N]."""
    b_dots = tl.zeros([o_v.shape[0], o_w.shape[0]], dtype=tl.float32)
    b_one = tl.full([o_v.shape[0], o_w.shape[0]], 1.0, dtype=tl.float32)
    b_vv = tl.zeros([o_v.shape[0], BLOCK_K], dtype=tl.float32)
    b_ww = tl.zeros([BLOCK_K, o_w.shape[0]], dtype=tl.float32)
    o_k = tl.arange(0, BLOCK_K)
    p_tile_v = p_v + o_v.to(tl.int64)[:, None] * dim + o_k[None, :]
    p_tile_w = p_w + o_w.to(tl.int64)[None, :] * dim + o_k[:, None]
    for k in range(0, dim, BLOCK_K):
        m_k = o_k < dim - k
        b_v = tl.load(p_tile_v + k, mask=m_v[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_tile_w + k, mask=m_w[None, :] & m_k[:, None], other=0.0)
        # Not added up by the tensor cores, whose additions truncate: at a scale of 100 that would be seen.
        b_dots = tl.fma(tl.dot(b_v, b_w, input_precision="ieee"), b_one, b_dots)
        b_v, b_w = b_v.to(tl.float32), b_w.to(tl.float32)
        b_vv += b_v * b_v
        b_ww += b_w * b_w
    b_v_length = tl.sqrt_rn(tl.sum(b_vv, axis=1))
    b_w_length = tl.sqrt_rn(tl.sum(b_ww, axis=0))
    return b_dots, 1.0 / tl.maximum(b_v_length, LEAST_LENGTH), 1.0 / tl.maximum(b_w_length, LEAST_LENGTH)


@triton.jit
def padded(columns):
    """The distance of rows of dot products."""
    return tl.cdiv(columns, PAD) * PAD


@triton.jit
def store_dots(p_dots, o_v, o_w, m_v, columns, b_dots):
    stride = padded(columns)
    tl.store(p_dots + o_v[:, None] * stride + o_w[None, :], b_dots, mask=m_v[:, None] & (o_w < stride)[None, :])


@triton.jit
def sign_and_size(scale):
    sign = tl.where(scale < 0, -1.0, 1.0)
    return sign, sign * scale


@triton.jit
def shares(b_cosine, b_largest, m_cosine, scale):
    """Exponentials of logits relative to those of the largest cosines."""
    return tl.where(m_cosine, tl.exp(scale * (b_cosine - b_largest)), 0.0)


@triton.jit
def is_last(p_arrived):
    """Whether all other programs of the launch have arrived here; what they stored before can then be read."""
    tl.debug_barrier()  # the stores of all threads come before the one thread that counts
    b_before = tl.atomic_add(p_arrived, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return b_before == tl.num_programs(0) - 1


@triton.jit
def store_part(p_parts, PART: tl.constexpr, i_part, parts, o_r, m_r, rows, b_value):
    tl.store(p_parts + (parts * PART + i_part) * rows + o_r, b_value, mask=m_r)


@triton.jit
def part_tile(p_parts, PART: tl.constexpr, o_part, parts, o_r, m_tile, rows, OTHERWISE: tl.constexpr):
    """[R, P] what P programs found of R rows; past the caches of this multiprocessor."""
    pointers = p_parts + (parts * PART + o_part)[None, :] * rows + o_r[:, None]
    return tl.load(pointers, mask=m_tile, other=OTHERWISE, cache_modifier=".cg")


@triton.jit
def combined(p_parts, parts, o_r, m_r, rows, scale):
    """[R] largest cosines of rows, sums of exponentials relative to them, and those of cosines weighted with them."""
    b_largest = tl.full([COMBINED_ROWS], BELOW_ALL, dtype=tl.float32)
    b_sum = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    b_weighted = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    o_p = tl.arange(0, COMBINED_PARTS)
    for i_first in range(0, parts, COMBINED_PARTS):
        m_tile = m_r[:, None] & (o_p < parts - i_first)[None, :]
        b_part = part_tile(p_parts, LARGEST, o_p + i_first, parts, o_r, m_tile, rows, BELOW_ALL)
        b_sums = part_tile(p_parts, SUM, o_p + i_first, parts, o_r, m_tile, rows, 0.0)
        b_sums_weighted = part_tile(p_parts, WEIGHTED, o_p + i_first, parts, o_r, m_tile, rows, 0.0)
        b_new = tl.maximum(b_largest, tl.max(b_part, axis=1))
        b_share, b_shares = tl.exp(scale * (b_largest - b_new)), tl.exp(scale * (b_part - b_new[:, None]))
        b_weighted = (b_weighted + b_sum * (b_largest - b_new)) * b_share
        b_weighted += tl.sum((b_sums_weighted + b_sums * (b_part - b_new[:, None])) * b_shares, axis=1)
        b_sum = b_sum * b_share + tl.sum(b_sums * b_shares, axis=1)
        b_largest = b_new
    return b_largest, b_sum, b_weighted


@triton.jit
def total(p_parts, PART: tl.constexpr, parts, o_r, m_r, rows):
    """[R] sum of one number over all programs that found it."""
    b_sums = tl.zeros([COMBINED_ROWS, COMBINED_PARTS], dtype=tl.float32)
    o_p = tl.arange(0, COMBINED_PARTS)
    for i_first in range(0, parts, COMBINED_PARTS):
        m_tile = m_r[:, None] & (o_p < parts - i_first)[None, :]
        b_sums += part_tile(p_parts, PART, o_p + i_first, parts, o_r, m_tile, rows, 0.0)
    return tl.sum(b_sums, axis=1)


@triton.jit
def finish_cross_entropy(p_targets, scale, sign, p_loss, p_softmax, p_parts, parts, rows, columns):
    """The last program's work: softmax of all rows, the loss and its derivative to the scale."""
    b_loss = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    b_slope = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    for i_first in range(0, rows, COMBINED_ROWS):
        o_r = i_first + tl.arange(0, COMBINED_ROWS)
        m_r = o_r < rows
        b_largest, b_sum, b_weighted = combined(p_parts, parts, o_r, m_r, rows, scale)
        b_own = total(p_parts, OWN, parts, o_r, m_r, rows)
        b_target = tl.load(p_targets + o_r, mask=m_r, other=0)
        # A target that is no class: NaN in the loss and, by the softmax, in all gradients that it enters.
        b_sum = tl.where((b_target >= 0) & (b_target < columns), b_sum, float("nan"))
        tl.store(p_softmax + o_r, sign * b_largest, mask=m_r)
        tl.store(p_softmax + rows + o_r, 1.0 / b_sum, mask=m_r)
        b_loss += tl.where(m_r, tl.log(b_sum) - scale * (b_own - b_largest), 0.0)
        b_slope += tl.where(m_r, b_weighted / b_sum - (b_own - b_largest), 0.0)
    tl.store(p_loss, tl.sum(b_loss, axis=0) / rows)
    tl.store(p_softmax + 2 * rows, sign * tl.sum(b_slope, axis=0) / rows)


@triton.jit(do_not_specialize=["rows", "columns", "tiles"])
def cross_entropy_kernel(
    p_v,  # (B, D)
    p_w,  # (C, D)
    p_targets,  # (B,) int64
    p_scale,
    p_loss,
    p_dots,  # (B, padded C) fp32
    p_state,
    p_parts,  # (ROW_PARTS, splits, B) fp32
    p_arrived,  # 0
    rows,
    columns,
    dim,
    tiles,  # of columns that a program goes over
    KEEP: tl.constexpr,  # write the dot products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    splits = tl.maximum(tl.cdiv(columns, BLOCK_N * tiles), 1)
    i_row, i_split = tl.program_id(0) // splits, tl.program_id(0) % splits
    o_v = i_row * BLOCK_M + tl.arange(0, BLOCK_M)
    m_v = o_v < rows
    sign, scale = sign_and_size(tl.load(p_scale))
    b_target = tl.load(p_targets + o_v, mask=m_v, other=0)
    b_largest = tl.full([BLOCK_M], BELOW_ALL, dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_weighted = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_own = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_tile in range(tiles):
        o_w = (i_split * tiles + i_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_w = o_w < columns
        b_dots, b_v_inverse, b_w_inverse = cosine_tile(p_v, p_w, o_v, o_w, m_v, m_w, dim, BLOCK_K)
        b_cosine = sign * (b_dots * b_v_inverse[:, None] * b_w_inverse[None, :])
        b_new = tl.maximum(b_largest, tl.max(tl.where(m_w[None, :], b_cosine, BELOW_ALL), axis=1))
        b_old = tl.exp(scale * (b_largest - b_new))
        b_share = shares(b_cosine, b_new[:, None], m_w[None, :], scale)
        b_weighted = (b_weighted + b_sum * (b_largest - b_new)) * b_old
        b_weighted += tl.sum(b_share * (b_cosine - b_new[:, None]), axis=1)
        b_sum = b_sum * b_old + tl.sum(b_share, axis=1)
        b_largest = b_new
        b_own += tl.sum(tl.where(o_w[None, :] == b_target[:, None], b_cosine, 0.0), axis=1)
        if KEEP:
            store_dots(p_dots, o_v, o_w, m_v, columns, b_dots)
        if i_split == 0:
            tl.store(p_state + o_v, b_v_inverse, mask=m_v)
        if i_row == 0:
            tl.store(p_state + rows + o_w, b_w_inverse, mask=m_w)
    store_part(p_parts, LARGEST, i_split, splits, o_v, m_v, rows, b_largest)
    store_part(p_parts, SUM, i_split, splits, o_v, m_v, rows, b_sum)
    store_part(p_parts, WEIGHTED, i_split, splits, o_v, m_v, rows, b_weighted)
    store_part(p_parts, OWN, i_split, splits, o_v, m_v, rows, b_own)
    if is_last(p_arrived):
        tl.store(p_arrived, 0)
        finish_cross_entropy(p_targets, scale, sign, p_loss, p_state + rows + columns, p_parts, splits, rows, columns)


@triton.jit
def soft_parts(p_parts, i_part, parts, o_r, m_r, rows, b_cosine, m_tile, m_same, scale, AXIS: tl.constexpr):
    """Reduce a tile along one axis and store what was found of the other one's samples."""
    b_largest = tl.max(tl.where(m_tile, b_cosine, BELOW_ALL), axis=AXIS)
    b_relative = b_cosine - tl.expand_dims(b_largest, AXIS)
    b_share = shares(b_cosine, tl.expand_dims(b_largest, AXIS), m_tile, scale)
    b_own, b_other = tl.where(m_tile & m_same, b_cosine, 0.0), tl.where(m_tile & (m_same == 0), b_cosine, 0.0)
    store_part(p_parts, LARGEST, i_part, parts, o_r, m_r, rows, b_largest)
    store_part(p_parts, SUM, i_part, parts, o_r, m_r, rows, tl.sum(b_share, axis=AXIS))
    store_part(p_parts, WEIGHTED, i_part, parts, o_r, m_r, rows, tl.sum(b_share * b_relative, axis=AXIS))
    store_part(p_parts, OWN, i_part, parts, o_r, m_r, rows, tl.sum(b_own, axis=AXIS))
    store_part(p_parts, OTHER, i_part, parts, o_r, m_r, rows, tl.sum(b_other, axis=AXIS))


@triton.jit
def soft_direction(p_parts, parts, p_softmax, o_r, m_r, rows, b_own, b_other, scale, sign):
    """[R] cross-entropies in one direction and their derivatives to the scale; the softmax of rows is stored.

    b_own is the target's probability of each sample with the same label, b_other that of each other one.
    """
    b_largest, b_sum, b_weighted = combined(p_parts, parts, o_r, m_r, rows, scale)
    b_target_mean = b_own * total(p_parts, OWN, parts, o_r, m_r, rows)
    b_target_mean += b_other * total(p_parts, OTHER, parts, o_r, m_r, rows)
    tl.store(p_softmax + o_r, sign * b_largest, mask=m_r)
    tl.store(p_softmax + rows + o_r, 1.0 / b_sum, mask=m_r)
    b_relative = b_target_mean - b_largest
    return tl.log(b_sum) - scale * b_relative, b_weighted / b_sum - b_relative


@triton.jit
def finish_soft_target(
    scale, sign, target_scale, p_loss, p_softmax, p_row_parts, p_column_parts, p_same, row_parts, column_parts, rows
):
    """The last program's work: softmax in both directions, targets, the loss and its derivative to the scale."""
    p_slope = p_softmax + 2 * rows
    p_column_softmax, p_own, p_other = p_slope + 1, p_slope + 1 + 2 * rows, p_slope + 1 + 3 * rows
    b_loss = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    b_slope = tl.zeros([COMBINED_ROWS], dtype=tl.float32)
    for i_first in range(0, rows, COMBINED_ROWS):
        o_r = i_first + tl.arange(0, COMBINED_ROWS)
        m_r = o_r < rows
        b_same = total(p_same, 0, row_parts, o_r, m_r, rows)
        b_others = rows - b_same
        # Every sample has its own label, so the largest logit of a target is that of equals, unless it is negative.
        b_largest = tl.where((target_scale >= 0) | (b_others == 0), target_scale, 0.0)
        b_own_logit, b_other_logit = target_scale - b_largest, -b_largest
        b_log_sum = tl.log(b_same * tl.exp(b_own_logit) + tl.where(b_others > 0, b_others * tl.exp(b_other_logit), 0.0))
        b_own, b_other = tl.exp(b_own_logit - b_log_sum), tl.where(b_others > 0, tl.exp(b_other_logit - b_log_sum), 0.0)
        b_entropy = b_same * b_own * (b_own_logit - b_log_sum) + b_others * b_other * (b_other_logit - b_log_sum)
        tl.store(p_own + o_r, b_own, mask=m_r)
        tl.store(p_other + o_r, b_other, mask=m_r)
        b_row_loss, b_row_slope = soft_direction(
            p_row_parts, row_parts, p_softmax, o_r, m_r, rows, b_own, b_other, scale, sign
        )
        b_column_loss, b_column_slope = soft_direction(
            p_column_parts, column_parts, p_column_softmax, o_r, m_r, rows, b_own, b_other, scale, sign
        )
        b_loss += tl.where(m_r, (b_entropy + b_row_loss) + (b_entropy + b_column_loss), 0.0)
        b_slope += tl.where(m_r, b_row_slope + b_column_slope, 0.0)
    tl.store(p_loss, tl.sum(b_loss, axis=0) / (2 * rows))
    tl.store(p_slope, sign * tl.sum(b_slope, axis=0) / (2 * rows))


@triton.jit(do_not_specialize=["rows"])
def soft_target_kernel(
    p_v,  # (B, D)
    p_w,  # (B, D)
    p_labels,  # (B,) int64
    p_scale,
    p_loss,
    p_dots,  # (B, padded B) fp32
    p_state,
    p_parts,  # (SOFT_PARTS, tiles of columns, B) of the rows, then (SOFT_PARTS, tiles of rows, B) of the columns
    p_same,  # (tiles of columns, B) fp32: how many samples have a row's label
    p_arrived,  # 0
    target_scale,
    rows,
    dim,
    KEEP: tl.constexpr,  # write the dot products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_M), tl.cdiv(rows, BLOCK_N)
    p_column_parts = p_parts + column_tiles * rows * SOFT_PARTS
    i_row, i_column = tl.program_id(0) // column_tiles, tl.program_id(0) % column_tiles
    o_v, o_w = i_row * BLOCK_M + tl.arange(0, BLOCK_M), i_column * BLOCK_N + tl.arange(0, BLOCK_N)
    m_v, m_w = o_v < rows, o_w < rows
    m_tile = m_v[:, None] & m_w[None, :]
    sign, scale = sign_and_size(tl.load(p_scale))
    b_dots, b_v_inverse, b_w_inverse = cosine_tile(p_v, p_w, o_v, o_w, m_v, m_w, dim, BLOCK_K)
    b_cosine = sign * (b_dots * b_v_inverse[:, None] * b_w_inverse[None, :])
    b_v_label, b_w_label = tl.load(p_labels + o_v, mask=m_v, other=0), tl.load(p_labels + o_w, mask=m_w, other=0)
    m_same = b_v_label[:, None] == b_w_label[None, :]
    soft_parts(p_parts, i_column, column_tiles, o_v, m_v, rows, b_cosine, m_tile, m_same, scale, 1)
    soft_parts(p_column_parts, i_row, row_tiles, o_w, m_w, rows, b_cosine, m_tile, m_same, scale, 0)
    b_same = tl.sum((m_tile & m_same).to(tl.float32), axis=1)
    store_part(p_same, 0, i_column, column_tiles, o_v, m_v, rows, b_same)
    if KEEP:
        store_dots(p_dots, o_v, o_w, m_v, rows, b_dots)
    if i_column == 0:
        tl.store(p_state + o_v, b_v_inverse, mask=m_v)
    if i_row == 0:
        tl.store(p_state + rows + o_w, b_w_inverse, mask=m_w)
    if is_last(p_arrived):
        tl.store(p_arrived, 0)
        p_softmax = p_state + 2 * rows
        finish_soft_target(
            scale, sign, target_scale, p_loss, p_softmax, p_parts, p_column_parts, p_same, column_tiles, row_tiles, rows
        )
