"""Projections: a matrix product with biases, a scale and the residual in one pass over its output.

Up-projections add x and a bias that the class token's rows have of their own; on the way back dx = dy + dh W adds dy,
and sums it over all rows while it is there: that is the gradient of the up-projection's bias.

Factors of fp32 are no work for tensor cores: PyTorch multiplies them, as precisely as its user wants it, and a kernel
finishes the product that it finds in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operands import as_rows
from .device import architecture, config_or_rule, shared_memory

Biases = tuple[Tensor | None, Tensor | None]  # of every row, and of patch rows besides


class ProjectionConfig(NamedTuple):
    """Tile of a program, tiles of rows that share their weights in the cache, pipeline stages, warps.

    In fp32, where nothing is left to multiply, rows, columns and warps decide.
    """

    rows: int
    columns: int
    depth: int
    group: int
    stages: int
    warps: int

    def pipeline(self, dtype: torch.dtype) -> int:
        """Bytes of shared memory that the stages take."""
        return self.stages * (self.rows + self.columns) * self.depth * dtype.itemsize


def projection_config(columns: int, depth: int, dtype: torch.dtype, architecture: int) -> ProjectionConfig:
    """The static rule: tiles whose pipeline leaves room for a second program on GPUs with 227 KB of shared memory.

    Depths of this operation are short, some ten steps, and the residual makes a program's end long: two programs an SM
    work while the other one begins or ends. 64 values of depth are 128 bytes, a full line of swizzled shared memory,
    as 32 values of a finished product of fp32 are.
    """
    if dtype == torch.float32:
        return ProjectionConfig(64, 32, 1, 1, 1, 4)
    if columns <= 64:
        return ProjectionConfig(128, 64 if columns > 32 else 32, 64, 8, 3, 4)
    config = ProjectionConfig(128, 128, 64, 8, 3, 8)
    return config if config.pipeline(dtype) <= shared_memory(architecture) else config._replace(stages=2)


def projection_candidates(columns: int, depth: int, dtype: torch.dtype, architecture: int) -> list[ProjectionConfig]:
    """What a tuner may try, the static rule's first: wider and taller tiles, fewer warps, longer pipelines."""
    rule = projection_config(columns, depth, dtype, architecture)
    if dtype == torch.float32:
        others = [rule._replace(rows=32), rule._replace(columns=64), rule._replace(rows=128, warps=8)]
    elif columns <= 64:
        others = [rule._replace(rows=64), rule._replace(stages=4), rule._replace(rows=256, warps=8)]
    else:
        others = [
            rule._replace(columns=256),
            rule._replace(columns=256, stages=4),
            rule._replace(rows=256),
            rule._replace(stages=4),
            rule._replace(warps=4),
            rule._replace(rows=64, warps=4, stages=4),
            rule._replace(rows=64, columns=256, warps=4),
            rule._replace(columns=64, warps=4, stages=4),
            rule._replace(group=4),
        ]
    return [rule, *(other for other in others if other.pipeline(dtype) <= shared_memory(architecture))]


# Columns that the end of a program works on at a time, half as many where it sums as well: residual and biases of a
# whole tile would fill the registers, and no second program would fit beside it.
PIECE = tl.constexpr(64)


class Blocks(NamedTuple):
    """Constants of a product: whether blocks fill all columns and all of the depth, the blocks of rows, columns and
    depth, and how many blocks of rows share their weights in the cache."""

    EVEN_N: bool
    EVEN_K: bool
    M: int
    N: int
    K: int
    GROUP: int = 1


@triton.jit
def tile(rows, columns, BLOCKS: tl.constexpr):
    """Block of rows and of columns; programs that follow each other share rows of a and columns of b in the cache."""
    i_program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(rows, BLOCKS.M), tl.cdiv(columns, BLOCKS.N)
    i_group = i_program // (BLOCKS.GROUP * blocks_n)
    group_size = min(blocks_m - i_group * BLOCKS.GROUP, BLOCKS.GROUP)
    i_in_group = i_program % (BLOCKS.GROUP * blocks_n)
    return i_group * BLOCKS.GROUP + i_in_group % group_size, i_in_group // group_size


@triton.jit
def product(p_a, p_b, i_m, i_n, sizes, strides, BLOCKS: tl.constexpr):
    """[M, N] of a @ b in fp32; what is past the last row is not used, past the last column there are zeros.

    a is (rows, depth) and contiguous, b (depth, columns) and of these strides; sizes are rows, columns, depth. Where b
    is None, a is the product itself.
    """
    rows, columns, depth = sizes
    stride_bk, stride_bn = strides
    BLOCK_M: tl.constexpr = BLOCKS.M
    BLOCK_N: tl.constexpr = BLOCKS.N
    BLOCK_K: tl.constexpr = BLOCKS.K
    if p_b is None:
        o_first, o_tile, m_tile, _ = place(i_m, i_n * BLOCK_N, rows, columns, BLOCK_M, BLOCK_N)
        b_sum = tl.load(p_a + o_first + o_tile, mask=m_tile, other=0.0)
    else:
        tl.static_assert(p_a.dtype.element_ty != tl.float32, "tensor cores would cut fp32 to tf32")
        first = i_m * BLOCK_M
        o_m = tl.minimum(tl.arange(0, BLOCK_M), rows - 1 - first)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        o_k = tl.arange(0, BLOCK_K)
        p_tile_a = p_a + first.to(tl.int64) * depth + (o_m[:, None] * depth + o_k[None, :])
        p_tile_b = p_b + o_k[:, None] * stride_bk + o_n[None, :] * stride_bn
        b_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for k in range(0, depth, BLOCK_K):
            if BLOCKS.EVEN_K:
                b_a = tl.load(p_tile_a)
            else:
                b_a = tl.load(p_tile_a, mask=(o_k < depth - k)[None, :], other=0.0)
            if BLOCKS.EVEN_K and BLOCKS.EVEN_N:
                b_b = tl.load(p_tile_b)
            else:
                b_b = tl.load(p_tile_b, mask=(o_k < depth - k)[:, None] & (o_n < columns)[None, :], other=0.0)
            b_sum = tl.dot(b_a, b_b, b_sum)
            p_tile_a += BLOCK_K
            p_tile_b += BLOCK_K * stride_bk
    return b_sum


@triton.jit
def halves(b_tile):
    """The left and the right columns of a tile; threads keep what they hold."""
    b_pair = tl.reshape(b_tile, [b_tile.shape[0], 2, b_tile.shape[1] // 2])
    return tl.split(tl.permute(b_pair, [0, 2, 1]))


@triton.jit
def place(i_m, column, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a tile of a contiguous (M, N) tensor from this column on: where it begins, offsets, mask, columns."""
    first = i_m * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    o_n = column + tl.arange(0, BLOCK_N)
    m_tile = (o_m < rows - first)[:, None] & (o_n < columns)[None, :]
    return first.to(tl.int64) * columns, o_m[:, None] * columns + o_n[None, :], m_tile, o_n


@triton.jit
def write_sum(p_sums, i_m, o_n, columns, stride, b_value):
    """Write the sum over a tile's rows to row i_m of p_sums, (blocks of rows, stride) fp32."""
    tl.store(p_sums + i_m.to(tl.int64) * stride + o_n, tl.sum(b_value, axis=0), mask=o_n < columns)


@triton.jit
def finish_projection(b_sum, column, i_m, p_out, added, sizes, scale, CLASS: tl.constexpr):
    """Write scale * (b_sum + biases) + residual, where b_sum is the product from `column` on.

    What is added are the residual, the bias of every row, the bias of every row but, with CLASS, every tokens-th; the
    fourth is where fp32 sums of the residual go, a row for each block of rows. None is left out. sizes are rows,
    columns, tokens.
    """
    p_residual, p_bias, p_patch_bias, p_sums = added
    rows, columns, tokens = sizes
    BLOCK_M: tl.constexpr = b_sum.shape[0]
    BLOCK_N: tl.constexpr = b_sum.shape[1]
    if (PIECE if p_sums is None else PIECE // 2) < BLOCK_N:
        b_left, b_right = halves(b_sum)
        finish_projection(b_left, column, i_m, p_out, added, sizes, scale, CLASS)
        finish_projection(b_right, column + BLOCK_N // 2, i_m, p_out, added, sizes, scale, CLASS)
    else:
        o_first, o_tile, m_tile, o_n = place(i_m, column, rows, columns, BLOCK_M, BLOCK_N)
        if p_bias is not None:
            b_sum += tl.load(p_bias + o_n, mask=o_n < columns, other=0.0).to(tl.float32)[None, :]
        if p_patch_bias is not None:
            b_patch = tl.load(p_patch_bias + o_n, mask=o_n < columns, other=0.0).to(tl.float32)[None, :]
            if CLASS:
                o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
                b_patch = tl.where((o_m % tokens == 0)[:, None], 0.0, b_patch)
            b_sum += b_patch
        b_sum *= scale
        if p_residual is not None:
            b_residual = tl.load(p_residual + o_first + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_sum += b_residual
            if p_sums is not None:
                write_sum(p_sums, i_m, o_n, columns, columns, b_residual)
        tl.store(p_out + o_first + o_tile, b_sum.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["rows", "tokens"])
def projection_kernel(
    p_a,  # factors as in product
    p_b,
    p_out,  # (M, N), contiguous as the residual
    added,  # as in finish_projection
    rows,
    tokens,
    shape,  # of b: depth, columns
    strides,
    scale,
    CLASS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    depth, columns = shape
    i_m, i_n = tile(rows, columns, BLOCKS)
    b_sum = product(p_a, p_b, i_m, i_n, (rows, columns, depth), strides, BLOCKS)
    finish_projection(b_sum, i_n * BLOCKS.N, i_m, p_out, added, (rows, columns, tokens), scale, CLASS)


def project(
    a: Tensor,
    b: Tensor,
    residual: Tensor | None,
    biases: Biases | None,
    class_token: bool,
    scale: float = 1.0,
    config: ProjectionConfig | None = None,
) -> Tensor:
    """scale * (a @ b + bias) + residual.

    Args:
        a: (..., L, K), contiguous. b: (K, N), any strides.
        residual: (..., L, N), contiguous, or None.
        biases: (N,) of every row and (N,) of patch rows besides, of any floating-point dtype; either may be None.
        class_token: whether token 0 of each L is no patch.
        scale: factor of all but the residual.
        config: tile; by default what was measured on this GPU, or else the static rule's.

    Returns:
        (..., L, N), dtype of the residual, without one that of a.
    """
    return _launch(a, b, residual, biases, class_token, scale, config, sums=False)[0]


def project_and_sum(
    a: Tensor, b: Tensor, residual: Tensor, config: ProjectionConfig | None = None
) -> tuple[Tensor, Tensor]:
    """a @ b + residual as in `project`, and the sums of the residual over blocks of rows, (blocks, N) fp32."""
    return _launch(a, b, residual, None, False, 1.0, config, sums=True)


def _launch(
    a: Tensor,
    b: Tensor,
    residual: Tensor | None,
    biases: Biases | None,
    class_token: bool,
    scale: float,
    config: ProjectionConfig | None,
    sums: bool,
) -> tuple[Tensor, Tensor]:
    depth, columns = b.shape
    rows = a.shape[:-1].numel()
    out = (a if residual is None else residual).new_empty(*a.shape[:-1], columns)
    config, (bias, patch_bias) = config or config_of(columns, depth, a), biases or (None, None)
    blocks = triton.cdiv(rows, config.rows)
    partial = torch.empty(blocks if sums else 0, columns, dtype=torch.float32, device=a.device)
    if rows == 0:
        return out, partial
    projection_kernel[blocks * triton.cdiv(columns, config.columns),](
        *factors(a, b),
        out,
        (residual, bias, patch_bias, partial if sums else None),
        rows,
        a.shape[-2],
        tuple(b.shape),
        b.stride(),
        scale,
        CLASS=class_token,
        **launch_options(columns, depth, config),
    )
    return out, partial


def factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `product` takes of a (..., K), contiguous, and b (K, N), any strides."""
    return (as_rows(a) @ b, None) if a.dtype == torch.float32 else (a, b)


def config_of(columns: int, depth: int, a: Tensor) -> ProjectionConfig:
    """What was measured for this product on the device of a, or else the static rule's tile."""
    question = columns, depth, a.dtype, architecture(a.device)
    return config_or_rule("projection", projection_config(*question), a.device, *question)


def launch_options(columns: int, depth: int, config: ProjectionConfig) -> dict[str, Any]:
    """The constants of `product` and `tile`, and the launch's own."""
    even = columns % config.columns == 0, depth % config.depth == 0
    blocks = Blocks(*even, config.rows, config.columns, config.depth, config.group)
    return {"BLOCKS": blocks, "num_stages": config.stages, "num_warps": config.warps}
