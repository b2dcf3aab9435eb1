"""The TED-Adapter's one-launch kernels in the static rules' configurations, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton.one_pass import (
    block_of,
    narrow_candidates,
    narrow_config,
    wide_candidates,
    wide_config,
)
from m2clip.kernels.triton.one_pass_kernels import one_pass_narrow_kernel, one_pass_wide_kernel
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

WEIGHTS = ("p_te_taps", "p_te_bias", "p_td_taps", "p_td_bias", "p_down_bias", "p_up_bias", "p_patch_bias")
VALUES = ("p_x", "p_down", "p_bias", "p_h", "p_u", "p_up", "p_y", *WEIGHTS)
SWITCHES = {
    "TEMPORAL": True,
    "DIFFERENCE": True,
    "CLASS": 1,
    "PATCHES_ONLY": False,
    "UP_BIAS": True,
    "RESIDUAL": True,
    "BIAS": True,
    "PRECISION": "ieee",
    "EVEN_C": True,
    "EVEN_D": True,
}
TARGETS = [*((architecture, torch.bfloat16) for architecture in SHARED_MEMORY), (120, torch.float32)]


def compile_tile(
    kernel: Any, config: Any, shared: bool, blocks: dict[str, int], architecture: int, dtype: torch.dtype
) -> Any:
    types = dict.fromkeys(VALUES, f"*{TYPES[dtype]}") | {"p_counts": "*i32"}
    tiles = {"BLOCK_M": config.rows, "BLOCK_N": config.columns, "BLOCK_K": config.depth, **blocks}
    aligned = [*VALUES, "width", "columns", "dim"]
    options = {"num_warps": config.warps, "num_stages": config.stages}
    switches = SWITCHES | {"SHARED": shared, "PATCH_BIAS": not shared}
    return compiled(kernel, architecture, types, switches | tiles, aligned, **options)


def narrow(width: int, config: Any, shared: bool, architecture: int, dtype: torch.dtype) -> Any:
    blocks = {"BLOCK_C": block_of(width if shared else 2 * width), "BLOCK_R": block_of(width)}
    return compile_tile(one_pass_narrow_kernel, config, shared, blocks, architecture, dtype)


def wide(config: Any, shared: bool, architecture: int, dtype: torch.dtype) -> Any:
    blocks = {"BLOCK_P": config.tokens, "BLOCK_C": config.channels}
    return compile_tile(one_pass_wide_kernel, config, shared, blocks, architecture, dtype)


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
@pytest.mark.parametrize(("width", "shared"), [(64, False), (128, False), (128, True)])
def test_narrow(width, shared, architecture, dtype, tmp_path: Path) -> None:
    config = narrow_config(width, width if shared else 2 * width, dtype, architecture)
    found = narrow(width, config, shared, architecture, dtype)
    assert fits(found, architecture)
    assert spilled(found, tmp_path) <= 2 * 8


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
def test_wide(architecture, dtype, tmp_path: Path) -> None:
    found = wide(wide_config(384, dtype, architecture), False, architecture, dtype)
    assert fits(found, architecture)
    assert spilled(found, tmp_path) <= 2 * 8


def test_candidates(tmp_path: Path) -> None:
    found = [narrow(64, config, False, 90, torch.bfloat16) for config in narrow_candidates(64, 128, torch.bfloat16, 90)]
    found += [wide(config, True, 90, torch.bfloat16) for config in wide_candidates(384, torch.bfloat16, 90)]
    for kernel in found:
        assert fits(kernel, 90)
        assert spilled(kernel, tmp_path) <= 2 * 8


def test_tiles_wait_and_report_in_the_memory_order_of_the_gpu() -> None:
    for kernel in (
        narrow(64, narrow_config(64, 128, torch.bfloat16, 90), False, 90, torch.bfloat16),
        wide(wide_config(384, torch.bfloat16, 90), False, 90, torch.bfloat16),
    ):
        orders = [line for line in kernel.asm["ptx"].splitlines() if ".gpu." in line]
        assert any("acquire" in line for line in orders)
        assert any("release" in line for line in orders)
