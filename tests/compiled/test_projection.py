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

# What is added: residual, bias, bias of patch rows, sums. Whether b is a transposed weight, and CLASS.
UP = (True, True, True, False), True
BACK = (True, False, False, True), False
DOWN = (False, True, False, False), True
Switches = tuple[tuple[bool, ...], bool]


def project(
    architecture: int,
    dtype: torch.dtype,
    columns: int,
    depth: int,
    switches: Switches,
    config: ProjectionConfig | None = None,
) -> Any:
    config = config or projection_config(columns, depth, dtype, architecture)
    given, transposed = switches
    value = f"*{TYPES[dtype]}:16"
    kinds = zip((value, value, value, "*fp32:16"), given, strict=True)
    types = dict.fromkeys(("p_a", "p_out"), value) | {
        "p_b": None if dtype == torch.float32 else value,  # None: the product is finished
        "added": tuple(kind if there else None for kind, there in kinds),
        "shape": ("i32:16", "i32:16"),
        "strides": (1, "i32:16") if transposed else ("i32:16", 1),
        "scale": "fp32",
    }
    options = projection.launch_options(columns, depth, config)
    return compiled(projection.projection_kernel, architecture, types, {"CLASS": switches is UP}, **options)


@pytest.mark.parametrize("switches", [UP, BACK, DOWN], ids=["up", "back", "down"])
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_static_rule(architecture: int, dtype: torch.dtype, switches: Switches, tmp_path: Path) -> None:
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
def test_hopper_gets_its_own_instructions(switches: Switches) -> None:
    ptx = project(90, torch.bfloat16, 768, 768, switches).asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" in ptx
    copies = re.findall(r"cp\.async\S* \[.*\], 0x(\w+)", ptx)
    assert copies and set(copies) == {"10"}  # into the pipeline sixteen bytes at a time
    assert set(re.findall(r"st\.global\.(v\d\.b\d+)", ptx)) >= {"v4.b32"}
    assert not re.search(r"st\.global\.b16", ptx)
