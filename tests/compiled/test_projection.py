"""Projections in every configuration of the static rule and the tuner, compiled without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton import projection
from m2clip.kernels.triton.projection import ProjectionConfig, projection_candidates, projection_config
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

UP = {"RESIDUAL": True, "BIAS": True, "CLASS": True, "SUMS": False, "stride_bk": 1}  # b is a transposed weight
BACK = {"RESIDUAL": True, "BIAS": False, "CLASS": False, "SUMS": True, "stride_bn": 1}
DOWN = {"RESIDUAL": False, "BIAS": True, "CLASS": False, "SUMS": False, "stride_bk": 1}


def project(
    architecture: int,
    dtype: torch.dtype,
    columns: int,
    depth: int,
    switches: dict[str, Any],
    config: ProjectionConfig | None = None,
) -> Any:
    config = config or projection_config(columns, depth, dtype, architecture)
    tensors = ("p_a", "p_b", "p_residual", "p_class_bias", "p_patch_bias", "p_out")
    types = dict.fromkeys(tensors, f"*{TYPES[dtype]}") | {"p_sums": "*fp32", "scale": "fp32"}
    options = projection.launch_options(columns, depth, dtype, config)
    launch = {name: options.pop(name) for name in ("num_stages", "num_warps")}
    aligned = [*tensors, "p_sums", *(name for name in ("columns", "depth", "stride_bk", "stride_bn"))]
    return compiled(projection.projection_kernel, architecture, types, switches | options, aligned, **launch)


@pytest.mark.parametrize("switches", [UP, BACK, DOWN], ids=["up", "back", "down"])
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_static_rule(architecture: int, dtype: torch.dtype, switches: dict[str, Any], tmp_path: Path) -> None:
    widths = (768, 768) if switches is not DOWN else (64, 768)
    found = project(architecture, dtype, *widths, switches)
    assert fits(found, architecture)
    assert spilled(found, tmp_path) == 0


@pytest.mark.parametrize("columns", [16, 768])
def test_odd_widths(columns: int, tmp_path: Path) -> None:
    found = project(90, torch.float16, columns + 16, 400, UP)
    assert fits(found, 90) and spilled(found, tmp_path) == 0


@pytest.mark.parametrize("config", projection_candidates(768, 384, torch.bfloat16, 90)[1:], ids=str)
def test_candidates(config: ProjectionConfig, tmp_path: Path) -> None:
    found = project(90, torch.bfloat16, 768, 384, BACK, config)
    assert fits(found, 90)
    assert spilled(found, tmp_path) == 0


@pytest.mark.parametrize("switches", [UP, BACK], ids=["up", "back"])
def test_hopper_gets_its_own_instructions(switches: dict[str, Any]) -> None:
    ptx = project(90, torch.bfloat16, 768, 768, switches).asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" in ptx
    copies = re.findall(r"cp\.async\S* \[.*\], 0x(\w+)", ptx)
    assert copies and set(copies) == {"10"}  # into the pipeline sixteen bytes at a time
    assert set(re.findall(r"st\.global\.(v\d\.b\d+)", ptx)) >= {"v4.b32"}
    assert not re.search(r"st\.global\.b16", ptx)
