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
def hidden(b_h, column, i_m, p_bias, p_h, p_g, sizes, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """g = act(h + bias) of the columns from `column` on, in this dtype.

    h and g are written to p_h and p_g, (rows, width), unless they are None; sizes are rows, width.
    """
    rows, width = sizes
    BLOCK_M: tl.constexpr = b_h.shape[0]
    BLOCK_N: tl.constexpr = b_h.shape[1]
    if BLOCK_N > PIECE:
        b_left, b_right = halves(b_h)
        b_left = hidden(b_left, column, i_m, p_bias, p_h, p_g, sizes, KIND, DTYPE)
        b_right = hidden(b_right, column + BLOCK_N // 2, i_m, p_bias, p_h, p_g, sizes, KIND, DTYPE)
        b_g = joined(b_left, b_right)
    else:
        o_first, o_tile, m_tile, o_r = place(i_m, column, rows, width, BLOCK_M, BLOCK_N)
        b_h += tl.load(p_bias + o_r, mask=o_r < width, other=0.0).to(tl.float32)[None, :]
        if p_h is not None:
            tl.store(p_h + o_first + o_tile, b_h.to(DTYPE), mask=m_tile)
        b_g, _ = value_and_slope(b_h, KIND)
        b_g = b_g.to(DTYPE)
        if p_g is not None:
            tl.store(p_g + o_first + o_tile, b_g, mask=m_tile)
    return b_g


@triton.jit
def hidden_gradient(b_dg, column, i_m, p_h, written, sizes, scale, KIND: tl.constexpr):
    """dh = scale * dg * act'(h) of the columns from `column` on, in the dtype of h; of rows past the last one 0.

    Written are dh and scale * g, (rows, width), and fp32 sums of dh, a row of `stride` values for each block of rows;
    None is left out. sizes are rows, width, stride.
    """
    p_dh, p_g, p_sums = written
    rows, width, stride = sizes
    BLOCK_M: tl.constexpr = b_dg.shape[0]
    BLOCK_N: tl.constexpr = b_dg.shape[1]
    if BLOCK_N > PIECE // 2:
        b_left, b_right = halves(b_dg)
        b_left = hidden_gradient(b_left, column, i_m, p_h, written, sizes, scale, KIND)
        b_right = hidden_gradient(b_right, column + BLOCK_N // 2, i_m, p_h, written, sizes, scale, KIND)
        b_out = joined(b_left, b_right)
    else:
        o_first, o_tile, m_tile, o_r = place(i_m, column, rows, width, BLOCK_M, BLOCK_N)
        b_h = tl.load(p_h + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_g, b_slope = value_and_slope(b_h, KIND)
        b_dh = tl.where(m_tile, b_dg * b_slope * scale, 0.0)
        b_out = b_dh.to(p_h.dtype.element_ty)
        if p_dh is not None:
            tl.store(p_dh + o_first + o_tile, b_out, mask=m_tile)
        if p_g is not None:
            tl.store(p_g + o_first + o_tile, (b_g * scale).to(p_g.dtype.element_ty), mask=m_tile)
        if p_sums is not None:
            write_sum(p_sums, i_m, o_r, width, stride, b_dh)
    return b_out


@triton.jit(do_not_specialize=["rows"])
def hidden_kernel(
    p_x,  # (M, D), as all tensors of two dimensions contiguous; with p_down factors as in product
    p_down,  # (R, D)
    p_bias,  # (R,)
    p_h,  # (M, R), or None
    p_g,  # (M, R)
    rows,
    shape,  # of p_down
    KIND: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The first of two launches forward: h = x Wᵀ + b, g = act(h)."""
    width, dim = shape
    i_m, i_n = tile(rows, width, BLOCKS)
    b_h = product(p_x, p_down, i_m, i_n, (rows, width, dim), (1, dim), BLOCKS)
    hidden(b_h, i_n * BLOCKS.N, i_m, p_bias, p_h, p_g, (rows, width), KIND, p_x.dtype.element_ty)


@triton.jit(do_not_specialize=["rows"])
def hidden_gradient_kernel(
    p_dy,  # (M, D), as all tensors of two dimensions contiguous; with p_up factors as in product
    p_up,  # (D, R)
    p_h,  # (M, R)
    written,  # as in hidden_gradient
    rows,
    shape,  # of p_up
    scale,
    KIND: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The first of two launches backward: dh = scale * dy V * act'(h), and g once more for the gradient of V."""
    dim, width = shape
    i_m, i_n = tile(rows, width, BLOCKS)
    b_dg = product(p_dy, p_up, i_m, i_n, (rows, width, dim), (width, 1), BLOCKS)
    hidden_gradient(b_dg, i_n * BLOCKS.N, i_m, p_h, written, (rows, width, width), scale, KIND)


@triton.jit
def expand(b_a, p_b, strides, i_m, p_out, added, sizes, scale, RESIDUAL: tl.constexpr, BLOCKS: tl.constexpr):
    """Write scale * (a @ b + bias) + residual, all columns of a block of rows; without a bias there is no scale.

    a is [M, width], in the dtype of the weights, b (width, dim), of these strides. What is added are the residual and
    the bias or None; the third is None or where fp32 sums of the residual go, the last dim of rows of width + dim.
    """
    p_residual, p_bias, p_sums = added
    rows, width, dim = sizes
    stride_br, stride_bd = strides
    BLOCK_M: tl.constexpr = b_a.shape[0]
    BLOCK_D: tl.constexpr = BLOCKS.K
    o_r = tl.arange(0, b_a.shape[1])
    for column in range(0, dim, BLOCK_D):
        o_first, o_tile, m_tile, o_d = place(i_m, column, rows, dim, BLOCK_M, BLOCK_D)
        p_tile_b = p_b + o_r[:, None] * stride_br + o_d[None, :] * stride_bd
        if BLOCKS.EVEN_N and BLOCKS.EVEN_K:
            b_b = tl.load(p_tile_b)
        else:
            b_b = tl.load(p_tile_b, mask=(o_r < width)[:, None] & (o_d < dim)[None, :], other=0.0)
        b_out = tl.dot(b_a, b_b)
        if p_bias is not None:
            b_out = (b_out + tl.load(p_bias + o_d, mask=o_d < dim, other=0.0).to(tl.float32)[None, :]) * scale
        if RESIDUAL or p_sums is not None:
            b_residual = tl.load(p_residual + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            if RESIDUAL:
                b_out += b_residual
            if p_sums is not None:
                write_sum(p_sums + width, i_m, o_d, dim, width + dim, b_residual)
        tl.store(p_out + o_first + o_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows"])
def bottleneck_kernel(
    p_x,  # (M, D), as all tensors of two dimensions contiguous
    p_down,  # (R, D)
    p_down_bias,  # (R,)
    p_up,  # (D, R)
    p_up_bias,  # (D,)
    p_y,  # (M, D)
    p_h,  # (M, R), or None
    rows,
    shape,  # of p_down
    scale,
    KIND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCKS: tl.constexpr,  # N holds the whole bottleneck, K the tokens' columns that are taken at a time
):
    """y = x + scale * (act(x Wᵀ + b) Vᵀ + a)."""
    width, dim = shape
    sizes = rows, width, dim
    i_m = tl.program_id(0)
    b_h = product(p_x, p_down, i_m, 0, sizes, (1, dim), BLOCKS)
    b_g = hidden(b_h, 0, i_m, p_down_bias, p_h, None, (rows, width), KIND, p_x.dtype.element_ty)
    expand(b_g, p_up, (1, width), i_m, p_y, (p_x, p_up_bias, None), sizes, scale, RESIDUAL, BLOCKS)


@triton.jit(do_not_specialize=["rows"])
def bottleneck_backward_kernel(
    p_dy,  # (M, D), as all tensors of two dimensions contiguous
    p_h,  # (M, R)
    p_down,  # (R, D)
    p_up,  # (D, R)
    p_dx,  # (M, D)
    written,  # as in hidden_gradient; the sums, (blocks of rows, R + D), go on with those of dy
    rows,
    shape,  # of p_down
    scale,
    KIND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """dx = dy + dh W, where dh = scale * dy V * act'(h)."""
    width, dim = shape
    sizes = rows, width, dim
    i_m = tl.program_id(0)
    b_dg = product(p_dy, p_up, i_m, 0, sizes, (width, 1), BLOCKS)
    b_dh = hidden_gradient(b_dg, 0, i_m, p_h, written, (rows, width, width + dim), scale, KIND)
    expand(b_dh, p_down, (dim, 1), i_m, p_dx, (p_dy, None, written[2]), sizes, 1.0, RESIDUAL, BLOCKS)
