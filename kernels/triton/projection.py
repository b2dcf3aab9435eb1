"""A projection back to the residual stream: product, biases and residual in one pass over the output.

The down-projection has nothing around it but a bias, and torch.addmm is left to it. The up-projection adds x and a bias
that the class token's rows have of their own; on the way back dx = dy + dh W adds dy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class ProjectionConfig(NamedTuple):
    """Tile of a program, tiles of rows that share their weights in the cache, pipeline stages, warps."""

    rows: int
    columns: int
    depth: int
    group: int
    stages: int
    warps: int


def projection_config(columns: int, depth: int, dtype: torch.dtype) -> ProjectionConfig:
    """The static rule: the largest tiles whose pipeline fits into 99 KB of shared memory, which sm_120 has."""
    if dtype == torch.float32:
        return ProjectionConfig(64, 64, 32, 8, 2, 4)
    if depth <= 64 or columns <= 64:
        return ProjectionConfig(64, 64, 32, 8, 3, 4)
    return ProjectionConfig(128, 128, 64, 8, 3, 8)


@triton.jit
def projection_kernel(
    p_a,  # (M, K), contiguous
    p_b,  # (K, N), any strides
    p_residual,  # (M, N), contiguous
    p_class_bias,  # (N,) fp32
    p_patch_bias,
    p_out,
    rows,
    columns,
    depth,
    tokens,
    stride_bk,
    stride_bn,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    CLASS: tl.constexpr,  # every tokens-th row takes the class bias
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Programs that follow each other share rows of a and columns of b in the cache.
    i_program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    i_group = i_program // (GROUP * blocks_n)
    group_size = min(blocks_m - i_group * GROUP, GROUP)
    i_m = i_group * GROUP + (i_program % (GROUP * blocks_n)) % group_size
    i_n = (i_program % (GROUP * blocks_n)) // group_size
    o_m = (i_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < rows, o_n < columns
    p_tile_a = p_a + o_m[:, None] * depth + o_k[None, :]
    p_tile_b = p_b + o_k[:, None] * stride_bk + o_n[None, :] * stride_bn
    b_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k in range(0, depth, BLOCK_K):
        m_k = o_k < depth - k
        b_a = tl.load(p_tile_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_b = tl.load(p_tile_b, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)
        p_tile_a += BLOCK_K
        p_tile_b += BLOCK_K * stride_bk
    m_out = m_m[:, None] & m_n[None, :]
    o_out = o_m[:, None] * columns + o_n[None, :]
    if BIAS:
        b_bias = tl.load(p_patch_bias + o_n, mask=m_n, other=0.0)[None, :]
        if CLASS:
            b_class = tl.load(p_class_bias + o_n, mask=m_n, other=0.0)[None, :]
            b_bias = tl.where((o_m % tokens == 0)[:, None], b_class, b_bias)
        b_sum += b_bias
    if RESIDUAL:
        b_sum += tl.load(p_residual + o_out, mask=m_out, other=0.0).to(tl.float32)
    tl.store(p_out + o_out, b_sum.to(p_out.dtype.element_ty), mask=m_out)


def project(
    a: Tensor,
    b: Tensor,
    residual: Tensor | None,
    biases: tuple[Tensor, Tensor] | None,
    class_token: bool,
    config: ProjectionConfig | None = None,
) -> Tensor:
    """a @ b + bias + residual.

    Args:
        a: (B*T, L, K), contiguous. b: (K, N), any strides.
        residual: (B*T, L, N), contiguous, or None.
        biases: fp32 (N,) of the class token's rows and of all others, or None.
        class_token: whether token 0 of each frame takes the first of the biases.
        config: tile; by default the static rule's.

    Returns:
        (B*T, L, N), dtype of a.
    """
    frames, tokens, depth = a.shape
    columns, rows = b.shape[1], frames * tokens
    out = a.new_empty(frames, tokens, columns)
    config = config or projection_config(columns, depth, a.dtype)
    class_bias, patch_bias = biases or (out, out)
    programs = triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns)
    if programs == 0:
        return out
    projection_kernel[programs,](
        a,
        b,
        out if residual is None else residual,
        class_bias,
        patch_bias,
        out,
        rows,
        columns,
        depth,
        tokens,
        b.stride(0),
        b.stride(1),
        RESIDUAL=residual is not None,
        BIAS=biases is not None,
        CLASS=class_token,
        PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        BLOCK_M=config.rows,
        BLOCK_N=config.columns,
        BLOCK_K=config.depth,
        GROUP=config.group,
        num_stages=config.stages,
        num_warps=config.warps,
    )
    return out
