"""Gradients of the contrastive losses to both sets of features and to the scale, in one launch.

With a and b one over the lengths of v and w, c the cosines, s the scale and g the gradient of the loss to the logits:
dv_i = s a_i (sum_j g_ij b_j w_j - (sum_j g_ij c_ij) a_i v_i), and dw_j likewise with the sums over i. A program makes a
tile of dv or dw and goes over the features of the other side, in a fixed order and without atomics. The slopes g come
from the dot products that the forward pass kept, or from dot products made once more where those would be too many.
loss_kernels.py describes the state and the names.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .loss_kernels import cosine_tile, padded

SHORTEST_INVERSE = tl.constexpr(0.9999e12)  # one over the least length, less than its rounding errors


@triton.jit
def nearest_tf32(b_x):
    """fp32 values rounded to the nearest tf32 (ties away from zero); tensor cores drop the low bits, towards zero."""
    b_bits = b_x.to(tl.int32, bitcast=True) + 0x1000  # half a unit of the last bit that stays
    return tl.where(b_x == b_x, (b_bits & -0x2000).to(tl.float32, bitcast=True), b_x)


@triton.jit
def pair(p_first, o_x, m_x, size):
    """Values of two vectors that follow each other."""
    return tl.load(p_first + o_x, mask=m_x, other=0.0), tl.load(p_first + size + o_x, mask=m_x, other=0.0)


class GradientBlocks(NamedTuple):
    """Constants of the launch: which loss, whether dot products were kept, how fp32 is multiplied, and four blocks: own
    features, the other side's, columns of the gradient, features of a dot product."""

    SOFT: bool
    KEPT: bool
    PRECISION: str
    M: int
    N: int
    D: int
    K: int


@triton.jit
def gradient_tile(
    i_program,
    p_own,  # features whose gradient is made
    p_other,
    p_out,  # (splits, own, D)
    saved,
    p_labels,
    factor,
    scale,
    sizes,
    tiles,  # of the other side's features that a program goes over
    TEXTS: tl.constexpr,  # the gradient is that of w
    BLOCKS: tl.constexpr,
):
    p_dots, p_state = saved
    rows, columns, dim = sizes
    SOFT: tl.constexpr = BLOCKS.SOFT
    BLOCK_M: tl.constexpr = BLOCKS.M
    BLOCK_N: tl.constexpr = BLOCKS.N
    BLOCK_D: tl.constexpr = BLOCKS.D
    own, other = (columns, rows) if TEXTS else (rows, columns)
    blocks_d, blocks_m = tl.cdiv(dim, BLOCK_D), tl.cdiv(own, BLOCK_M)
    i_d, i_m, i_split = i_program % blocks_d, (i_program // blocks_d) % blocks_m, i_program // (blocks_d * blocks_m)
    p_v_inverse, p_w_inverse, p_row_softmax = p_state, p_state + rows, p_state + rows + columns
    p_column_softmax = p_row_softmax + 2 * rows + 1
    p_target = p_column_softmax + 2 * columns
    p_own_inverse, p_other_inverse = (p_w_inverse, p_v_inverse) if TEXTS else (p_v_inverse, p_w_inverse)
    p_own_softmax, p_other_softmax = (p_column_softmax, p_row_softmax) if TEXTS else (p_row_softmax, p_column_softmax)
    o_m, o_d = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_m, m_d = o_m < own, o_d < dim
    b_own_inverse = tl.load(p_own_inverse + o_m, mask=m_m, other=0.0)
    # Classes have a softmax of the rows alone, those of v, and each text is a label of its own.
    if SOFT or not TEXTS:
        b_own_max, b_own_scale = pair(p_own_softmax, o_m, m_m, own)
        b_own_label = tl.load(p_labels + o_m, mask=m_m, other=0)
    else:
        b_own_label = o_m.to(tl.int64)
    if SOFT:
        b_own_same, b_own_not = pair(p_target, o_m, m_m, own)
    stride = padded(columns)
    b_sum = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_pull = tl.zeros([BLOCK_M], dtype=tl.float32)
    for i_tile in range(tiles):
        o_n = (i_split * tiles + i_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < other
        if BLOCKS.KEPT:
            if TEXTS:
                o_dots, m_dots = o_n[None, :] * stride + o_m[:, None], (o_m < stride)[:, None] & m_n[None, :]
            else:
                o_dots, m_dots = o_m[:, None] * stride + o_n[None, :], m_m[:, None] & (o_n < stride)[None, :]
            b_dots = tl.load(p_dots + o_dots, mask=m_dots, other=0.0)
            b_other_inverse = tl.load(p_other_inverse + o_n, mask=m_n, other=0.0)
        else:
            b_dots, _, b_other_inverse = cosine_tile(p_own, p_other, o_m, o_n, m_m, m_n, dim, BLOCKS.K)
        # Rounded as in the forward pass, which the log-sum-exps are of.
        if TEXTS:
            b_cosine = b_dots * b_other_inverse[None, :] * b_own_inverse[:, None]
        else:
            b_cosine = b_dots * b_own_inverse[:, None] * b_other_inverse[None, :]
        if SOFT or TEXTS:
            b_max, b_scale = pair(p_other_softmax, o_n, m_n, other)
            b_label = tl.load(p_labels + o_n, mask=m_n, other=0)
        else:
            b_label = o_n.to(tl.int64)
        m_same = b_own_label[:, None] == b_label[None, :]
        if SOFT:
            b_same, b_not = pair(p_target, o_n, m_n, other)
            b_slope = tl.exp(scale * (b_cosine - b_own_max[:, None])) * b_own_scale[:, None]
            b_slope -= tl.where(m_same, b_own_same[:, None], b_own_not[:, None])
            b_slope += tl.exp(scale * (b_cosine - b_max[None, :])) * b_scale[None, :]
            b_slope -= tl.where(m_same, b_same[None, :], b_not[None, :])
        elif TEXTS:
            b_slope = tl.exp(scale * (b_cosine - b_max[None, :])) * b_scale[None, :] - tl.where(m_same, 1.0, 0.0)
        else:
            b_slope = tl.exp(scale * (b_cosine - b_own_max[:, None])) * b_own_scale[:, None] - tl.where(
                m_same, 1.0, 0.0
            )
        b_slope = tl.where(m_n[None, :], b_slope, 0.0)
        b_pull += tl.sum(b_slope * b_cosine, axis=1)
        p_tile = p_other + o_n.to(tl.int64)[:, None] * dim + o_d[None, :]
        b_other = tl.load(p_tile, mask=m_n[:, None] & m_d[None, :], other=0.0).to(tl.float32)
        b_weight = b_slope * b_other_inverse[None, :]
        if BLOCKS.PRECISION == "tf32":  # the other side's features have half precision, which tf32 holds
            b_rounded = nearest_tf32(b_weight)
            if p_own.dtype.element_ty == tl.float16:  # as precise as tf32: what was rounded off is added too
                b_sum = tl.dot(b_weight - b_rounded, b_other, b_sum, input_precision="tf32")
            b_weight = b_rounded
        b_sum = tl.dot(b_weight, b_other, b_sum, input_precision=BLOCKS.PRECISION)
    o_out = o_m.to(tl.int64)[:, None] * dim + o_d[None, :]
    m_out = m_m[:, None] & m_d[None, :]
    b_own = tl.load(p_own + o_out, mask=m_out, other=0.0).to(tl.float32)
    # A length below the least one is replaced by a constant, whose derivative is 0.
    b_pull = tl.where(b_own_inverse < SHORTEST_INVERSE, b_pull * b_own_inverse, 0.0)
    b_out = factor * b_own_inverse[:, None] * (b_sum - b_pull[:, None] * b_own)
    p_split = p_out + i_split.to(tl.int64) * own * dim
    tl.store(p_split + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["rows", "columns", "v_programs", "v_tiles", "w_tiles"])
def loss_backward_kernel(
    p_gradient,
    features,  # v (B, D), w (C, D)
    saved,  # dot products (B, padded C) fp32, the state
    p_labels,  # (B,) int64: targets, or labels of both sides
    p_scale,
    written,  # dv (splits, B, D), dw (splits, C, D)
    p_dscale,
    rows,
    columns,
    dim,
    v_programs,  # those of dv come first
    v_tiles,
    w_tiles,
    BLOCKS: tl.constexpr,
):
    i_program = tl.program_id(0)
    p_v, p_w = features
    p_dv, p_dw = written
    gradient, scale = tl.load(p_gradient), tl.load(p_scale)
    if i_program == 0:
        tl.store(p_dscale, gradient * tl.load(saved[1] + 3 * rows + columns))
    factor = gradient * scale / ((2 if BLOCKS.SOFT else 1) * rows)
    sizes = rows, columns, dim
    if i_program < v_programs:
        gradient_tile(i_program, p_v, p_w, p_dv, saved, p_labels, factor, scale, sizes, v_tiles, False, BLOCKS)
    else:
        i_program -= v_programs
        gradient_tile(i_program, p_w, p_v, p_dw, saved, p_labels, factor, scale, sizes, w_tiles, True, BLOCKS)
