"""What lies between the projections of bottleneck_adapter, in the epilogue of a product, and all of it in one launch.

Narrow bottlenecks are bound by memory: there one program takes its rows through both projections, so that tokens are
read once, written once, and the hidden values between them are written only where the backward pass wants them.

Names: p_ pointers, o_ offsets, m_ masks, b_ values of a block, i_ numbers of programs; M rows, D tokens' width, R
bottleneck's width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import value_and_slope
from .projection import PIECE, halves, place, product, tile, write_sum


@triton.jit
def joined(b_left, b_right):
    """The tile whose halves these are."""
    b_pair = tl.permute(tl.join(b_left, b_right), [0, 2, 1])
    return tl.reshape(b_pair, [b_left.shape[0], 2 * b_left.shape[1]])


@triton.jit
def hidden(
    b_h,
    column,
    i_m,
    p_bias,
    p_h,
    p_g,
    rows,
    width,
    KIND: tl.constexpr,
    KEEP: tl.constexpr,  # whether h is written, which the backward pass wants
    WRITE: tl.constexpr,  # whether g is written
):
    """g = act(h + bias) of the columns from `column` on, in the dtype of h."""
    BLOCK_M: tl.constexpr = b_h.shape[0]
    BLOCK_N: tl.constexpr = b_h.shape[1]
    if BLOCK_N > PIECE:
        b_left, b_right = halves(b_h)
        right = column + BLOCK_N // 2
        b_left = hidden(b_left, column, i_m, p_bias, p_h, p_g, rows, width, KIND, KEEP, WRITE)
        b_right = hidden(b_right, right, i_m, p_bias, p_h, p_g, rows, width, KIND, KEEP, WRITE)
        b_g = joined(b_left, b_right)
    else:
        o_first, o_tile, m_tile, o_r = place(i_m, column, rows, width, BLOCK_M, BLOCK_N)
        b_h += tl.load(p_bias + o_r, mask=o_r < width, other=0.0).to(tl.float32)[None, :]
        if KEEP:
            tl.store(p_h + o_first + o_tile, b_h.to(p_h.dtype.element_ty), mask=m_tile)
        b_g, _ = value_and_slope(b_h, KIND)
        b_g = b_g.to(p_h.dtype.element_ty)
        if WRITE:
            tl.store(p_g + o_first + o_tile, b_g, mask=m_tile)
    return b_g


@triton.jit
def hidden_gradient(
    b_dg,
    column,
    i_m,
    p_h,
    p_dh,
    p_g,
    p_sums,
    rows,
    width,
    sums_stride,
    scale,
    KIND: tl.constexpr,
    WEIGHTS: tl.constexpr,  # whether weights get gradients: g and the sums of dh are written
    WRITE: tl.constexpr,  # whether dh is written
):
    """dh = scale * dg * act'(h) of the columns from `column` on, in the dtype of h; of rows past the last one 0."""
    BLOCK_M: tl.constexpr = b_dg.shape[0]
    BLOCK_N: tl.constexpr = b_dg.shape[1]
    if BLOCK_N > PIECE // 2:
        b_left, b_right = halves(b_dg)
        right = column + BLOCK_N // 2
        b_left = hidden_gradient(
            b_left, column, i_m, p_h, p_dh, p_g, p_sums, rows, width, sums_stride, scale, KIND, WEIGHTS, WRITE
        )
        b_right = hidden_gradient(
            b_right, right, i_m, p_h, p_dh, p_g, p_sums, rows, width, sums_stride, scale, KIND, WEIGHTS, WRITE
        )
        b_out = joined(b_left, b_right)
    else:
        o_first, o_tile, m_tile, o_r = place(i_m, column, rows, width, BLOCK_M, BLOCK_N)
        b_h = tl.load(p_h + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_g, b_slope = value_and_slope(b_h, KIND)
        b_dh = tl.where(m_tile, b_dg * b_slope * scale, 0.0)
        b_out = b_dh.to(p_h.dtype.element_ty)
        if WRITE:
            tl.store(p_dh + o_first + o_tile, b_out, mask=m_tile)
        if WEIGHTS:
            tl.store(p_g + o_first + o_tile, (b_g * scale).to(p_g.dtype.element_ty), mask=m_tile)
            write_sum(p_sums, i_m, o_r, width, sums_stride, b_dh)
    return b_out


@triton.jit(do_not_specialize=["rows"])
def hidden_kernel(
    p_x,  # (M, D), as all tensors of two dimensions contiguous
    p_down,  # (R, D)
    p_bias,  # (R,)
    p_h,  # (M, R), written only with KEEP
    p_g,  # (M, R)
    rows,
    width,
    dim,
    KIND: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The first of two launches forward: h = x Wᵀ + b, g = act(h)."""
    i_m, i_n = tile(rows, width, BLOCK_M, BLOCK_N, GROUP)
    b_h = product(p_x, p_down, i_m, i_n, rows, width, dim, 1, dim, PRECISION, EVEN_N, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K)
    hidden(b_h, i_n * BLOCK_N, i_m, p_bias, p_h, p_g, rows, width, KIND, KEEP, True)


@triton.jit(do_not_specialize=["rows"])
def hidden_gradient_kernel(
    p_dy,  # (M, D), as all tensors of two dimensions contiguous
    p_up,  # (D, R)
    p_h,  # (M, R)
    p_dh,
    p_g,  # (M, R): scale * g, written only with WEIGHTS
    p_sums,  # (blocks of rows, R) fp32: sums of dh, likewise
    rows,
    width,
    dim,
    scale,
    KIND: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The first of two launches backward: dh = scale * dy V * act'(h), and g once more for the gradient of V."""
    i_m, i_n = tile(rows, width, BLOCK_M, BLOCK_N, GROUP)
    b_dg = product(
        p_dy, p_up, i_m, i_n, rows, width, dim, width, 1, PRECISION, EVEN_N, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K
    )
    hidden_gradient(b_dg, i_n * BLOCK_N, i_m, p_h, p_dh, p_g, p_sums, rows, width, width, scale, KIND, WEIGHTS, True)


@triton.jit
def expand(
    b_a,  # [BLOCK_M, BLOCK_R], in the dtype of the weights
    p_b,  # (R, D), of these strides
    stride_br,
    stride_bd,
    p_bias,  # (D,)
    p_residual,  # (M, D)
    p_out,  # (M, D)
    p_sums,  # a row for each block of rows, fp32
    i_m,
    rows,
    width,
    dim,
    sums_stride,
    scale,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SUMS: tl.constexpr,  # of the residual over the rows
    PRECISION: tl.constexpr,
    EVEN_R: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write scale * (a @ b + bias) + residual, all columns of a block of rows; without a bias there is no scale."""
    BLOCK_M: tl.constexpr = b_a.shape[0]
    o_r = tl.arange(0, b_a.shape[1])
    for column in range(0, dim, BLOCK_D):
        o_first, o_tile, m_tile, o_d = place(i_m, column, rows, dim, BLOCK_M, BLOCK_D)
        p_tile_b = p_b + o_r[:, None] * stride_br + o_d[None, :] * stride_bd
        if EVEN_R and EVEN_D:
            b_b = tl.load(p_tile_b)
        else:
            b_b = tl.load(p_tile_b, mask=(o_r < width)[:, None] & (o_d < dim)[None, :], other=0.0)
        b_out = tl.dot(b_a, b_b, input_precision=PRECISION)
        if BIAS:
            b_out = (b_out + tl.load(p_bias + o_d, mask=o_d < dim, other=0.0).to(tl.float32)[None, :]) * scale
        if RESIDUAL or SUMS:
            b_residual = tl.load(p_residual + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            if RESIDUAL:
                b_out += b_residual
            if SUMS:
                write_sum(p_sums, i_m, o_d, dim, sums_stride, b_residual)
        tl.store(p_out + o_first + o_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows"])
def bottleneck_kernel(
    p_x,  # (M, D), as all tensors of two dimensions contiguous
    p_down,  # (R, D)
    p_down_bias,  # (R,)
    p_up,  # (D, R)
    p_up_bias,  # (D,)
    p_y,  # (M, D)
    p_h,  # (M, R), written only with KEEP
    rows,
    width,
    dim,
    scale,
    KIND: tl.constexpr,
    KEEP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_R: tl.constexpr,  # whether the block fills the whole bottleneck, and blocks the tokens' width
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """y = x + scale * (act(x Wᵀ + b) Vᵀ + a)."""
    i_m = tl.program_id(0)
    b_h = product(p_x, p_down, i_m, 0, rows, width, dim, 1, dim, PRECISION, EVEN_R, EVEN_D, BLOCK_M, BLOCK_R, BLOCK_D)
    b_g = hidden(b_h, 0, i_m, p_down_bias, p_h, p_h, rows, width, KIND, KEEP, False)
    expand(
        b_g,
        p_up,
        1,
        width,
        p_up_bias,
        p_x,
        p_y,
        p_y,
        i_m,
        rows,
        width,
        dim,
        0,
        scale,
        True,
        RESIDUAL,
        False,
        PRECISION,
        EVEN_R,
        EVEN_D,
        BLOCK_D,
    )


@triton.jit(do_not_specialize=["rows"])
def bottleneck_backward_kernel(
    p_dy,  # (M, D), as all tensors of two dimensions contiguous
    p_h,  # (M, R)
    p_down,  # (R, D)
    p_up,  # (D, R)
    p_dx,  # (M, D)
    p_dh,  # (M, R), written only with WEIGHTS, as all that follow
    p_g,  # (M, R): scale * g
    p_sums,  # (blocks of rows, R + D) fp32: sums over the rows of dh, then of dy
    rows,
    width,
    dim,
    scale,
    KIND: tl.constexpr,
    WEIGHTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_R: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx = dy + dh W, where dh = scale * dy V * act'(h)."""
    i_m = tl.program_id(0)
    b_dg = product(p_dy, p_up, i_m, 0, rows, width, dim, width, 1, PRECISION, EVEN_R, EVEN_D, BLOCK_M, BLOCK_R, BLOCK_D)
    sums_stride = width + dim
    b_dh = hidden_gradient(
        b_dg, 0, i_m, p_h, p_dh, p_g, p_sums, rows, width, sums_stride, scale, KIND, WEIGHTS, WEIGHTS
    )
    expand(
        b_dh,
        p_down,
        dim,
        1,
        p_dy,
        p_dy,
        p_dx,
        p_sums + width,
        i_m,
        rows,
        width,
        dim,
        sums_stride,
        1.0,
        False,
        RESIDUAL,
        WEIGHTS,
        PRECISION,
        EVEN_R,
        EVEN_D,
        BLOCK_D,
    )
