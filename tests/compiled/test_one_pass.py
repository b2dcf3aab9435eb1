"""The TED-Adapter's one-launch kernels in the static rules' configurations, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton.one_pass import block_of, narrow_candidates, narrow_config, wide_candidates, wide_config
from m2clip.kernels.triton.one_pass_kernels import one_pass_narrow_kernel, one_pass_wide_kernel
from m2clip.kernels.triton.projection import Blocks
from m2clip.kernels.triton.tiles import Layout
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

TARGETS = [(architecture, torch.bfloat16) for architecture in SHARED_MEMORY]


def compile_tile(
    kernel: Any, width: int, config: Any, shared: bool, architecture: int, dtype: torch.dtype, **blocks: Any
) -> Any:
    value = f"*{TYPES[dtype]}:16"
    types = dict.fromkeys(("p_x", "p_h", "p_u", "p_y"), value) | {
        "p_counts": "*i32",
        "down": (value, value),
        "p_temporal": "*fp32:16",
        "p_difference": "*fp32:16",
        "up": (value, value, None if shared else value),
        "dim": "i32:16",
    }
    blocks |= {"RESIDUAL": True, "LAYOUT": Layout(width, width if shared else 2 * width, 1, False)}
    return compiled(kernel, architecture, types, blocks, num_warps=config.warps, num_stages=config.stages)


def narrow(width: int, config: Any, shared: bool, architecture: int, dtype: torch.dtype) -> Any:
    columns = block_of(width if shared else 2 * width)
    blocks = {"BLOCK_N": config.columns, "BLOCK_R": block_of(width)}
    blocks["DOWN"] = Blocks(True, True, config.rows, columns, config.depth)
    return compile_tile(one_pass_narrow_kernel, width, config, shared, architecture, dtype, **blocks)


def wide(config: Any, shared: bool, architecture: int, dtype: torch.dtype) -> Any:
    product = Blocks(True, True, config.rows, config.columns, config.depth)
    blocks = {"DOWN": product, "UP": product, "BLOCK_P": config.tokens, "BLOCK_C": config.channels, "ADJACENT": 2}
    return compile_tile(one_pass_wide_kernel, 384, config, shared, architecture, dtype, **blocks)


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
