"""The forward pass of the TED-Adapter in one launch: launches of one_pass_kernels.py and their configurations.

For 16-bit tokens, which tensor cores multiply.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import Branches, Geometry
from .device import architecture, config_or_rule, shared_memory
from .mixer import MixerConfig, prepared
from .one_pass_kernels import one_pass_narrow_kernel, one_pass_wide_kernel
from .projection import Blocks
from .ted_weights import up_biases

WIDEST_NARROW = 256  # columns of h, which one tile of the narrow plan holds
_PROGRAMS = 2  # on a multiprocessor at a time
_ADJACENT = 2  # patches that a thread of the mixer holds


class NarrowConfig(NamedTuple):
    """Rows of a tile, columns of y and depth of x at a time, stages of both pipelines, warps."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int


class WideConfig(NamedTuple):
    """Tile of a product, pipeline stages, warps, and the mixer's tile of tokens and channels."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int
    tokens: int
    channels: int


def block_of(width: int) -> int:
    """The block that holds so many columns; tensor cores take 16 at least."""
    return max(triton.next_power_of_2(width), 16)


def narrow_config(width: int, columns: int, dtype: torch.dtype, architecture: int) -> NarrowConfig:
    """The static rule for R channels a branch in C columns: 128 rows to each pass over the weights, if u and h fit."""
    if width > 64 or columns > 128:
        return NarrowConfig(64, 64, 32, 2, 8)
    return NarrowConfig(128, 64, 64, 3 if shared_memory(architecture) > 99 * 1024 else 2, 8)


def narrow_candidates(width: int, columns: int, dtype: torch.dtype, architecture: int) -> list[NarrowConfig]:
    """What a tuner may try, the static rule's first."""
    rule = narrow_config(width, columns, dtype, architecture)
    others = [rule._replace(rows=64, warps=4), rule._replace(stages=2), rule._replace(depth=32)]
    return list(dict.fromkeys([rule, *others]))


def wide_config(width: int, dtype: torch.dtype, architecture: int) -> WideConfig:
    """The static rule for R channels of a branch: the projections' tiles, and the mixer's in as many warps."""
    channels = min(32, triton.next_power_of_2(width))
    return WideConfig(128, 128, 64, 3 if shared_memory(architecture) > 99 * 1024 else 2, 8, 64, channels)


def wide_candidates(width: int, dtype: torch.dtype, architecture: int) -> list[WideConfig]:
    """What a tuner may try, the static rule's first."""
    rule = wide_config(width, dtype, architecture)
    others = [rule._replace(tokens=tokens) for tokens in (32, 64)]
    others += [rule._replace(stages=2), rule._replace(columns=64, warps=4, tokens=32)]
    return list(dict.fromkeys([rule, *others]))


def forward_narrow(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, config: NarrowConfig | None = None
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C) of contiguous x; C at most `WIDEST_NARROW`.

    Reads x twice, the second time from the cache as long as it holds the clips between the stages; writes h and y, and
    reads h from the cache.
    """
    h, y = x.new_empty(branches.hidden_shape(x)), torch.empty_like(x)
    mixer, joined = prepared(branches, geometry, x.dtype)
    frames, tokens, dim = x.shape
    columns, block = h.shape[2], block_of(h.shape[2])
    if config is None:
        question = mixer.width, columns, x.dtype, architecture(x.device)
        config = config_or_rule("one_pass_narrow", narrow_config(*question), x.device, *question)
    clips, step = frames // geometry.num_frames, 2 * triton.cdiv(geometry.num_frames * tokens, config.rows)
    ahead = _ahead(step, x.device)
    one_pass_narrow_kernel[(clips + ahead) * step,](
        x,
        (joined.down, joined.down_bias),
        h,
        *mixer.tables,
        (joined.up, *up_biases(branches, geometry.patches_only)),
        y,
        torch.zeros(1 + clips, dtype=torch.int32, device=x.device),
        clips,
        ahead,
        *mixer.frames(h),
        *geometry.grid,
        dim,
        RESIDUAL=residual,
        LAYOUT=mixer.layout(h),
        DOWN=Blocks(block == columns, dim % config.depth == 0, config.rows, block, config.depth),
        BLOCK_N=config.columns,
        BLOCK_R=block_of(mixer.width),
        num_stages=config.stages,
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
    return y, h


def forward_wide(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, config: WideConfig | None = None
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C) of contiguous x.

    Moves the bytes of a launch for each step, h and u whole, of which the cache serves those that a stage reads again:
    x, h and u of the clips between the stages.
    """
    h, y = x.new_empty(branches.hidden_shape(x)), torch.empty_like(x)
    mixer, joined = prepared(branches, geometry, x.dtype)
    frames, tokens, dim = x.shape
    columns = h.shape[2]
    if config is None:
        question = mixer.width, x.dtype, architecture(x.device)
        config = config_or_rule("one_pass_wide", wide_config(*question), x.device, *question)
    clips = frames // geometry.num_frames
    tile = MixerConfig(config.tokens, config.channels, config.warps, _ADJACENT)
    temporal_tiles, mixes = mixer.tiles(h, tile)
    blocks_n = triton.cdiv(columns, config.columns) + triton.cdiv(dim, config.columns)
    blocks_m = triton.cdiv(geometry.num_frames * tokens, config.rows)
    step = blocks_m * blocks_n + mixes
    ahead = _ahead(step, x.device)
    even_c, even_d = (size % config.columns == 0 and size % config.depth == 0 for size in (columns, dim))
    blocks = config.rows, config.columns, config.depth
    one_pass_wide_kernel[(clips + 2 * ahead) * step,](
        x,
        (joined.down, joined.down_bias),
        h,
        *mixer.tables,
        torch.empty_like(h),
        (joined.up, *up_biases(branches, geometry.patches_only)),
        y,
        torch.zeros(1 + 2 * clips, dtype=torch.int32, device=x.device),
        clips,
        ahead,
        temporal_tiles,
        mixes,
        *mixer.frames(h),
        *geometry.grid,
        dim,
        RESIDUAL=residual,
        LAYOUT=mixer.layout(h),
        DOWN=Blocks(even_c, even_d, *blocks),
        UP=Blocks(even_d, even_c, *blocks),
        BLOCK_P=config.tokens,
        BLOCK_C=config.channels,
        ADJACENT=_ADJACENT,
        num_stages=config.stages,
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
    return y, h


def _ahead(step: int, device: torch.device) -> int:
    """Clips between two stages, of so many tiles a clip: a tile's predecessors have been done when its turn comes."""
    return triton.cdiv(_PROGRAMS * _multiprocessors(device.index) if device.type == "cuda" else 1, step)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
