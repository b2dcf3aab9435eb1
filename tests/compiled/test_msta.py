"""The kernels of msta_adapter in every configuration, compiled without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from m2clip.kernels.triton import msta, msta_kernels, projection
from m2clip.kernels.triton.msta import TimeConfig, time_candidates, time_config, up_candidates, up_config
from m2clip.kernels.triton.projection import ProjectionConfig
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

DIM = 768
TENSORS = (
    *("p_a", "p_h", "p_dh", "p_u", "p_up", "p_taps", "p_bias", "p_base", "p_y"),
    *("p_dy", "p_weight", "p_slope"),
)
every_architecture = pytest.mark.parametrize("architecture", SHARED_MEMORY)
every_dtype = pytest.mark.parametrize("dtype", TYPES, ids=str)
# In the products fp16 differs from bf16 by an instruction; it is compiled once below.
two_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def kernel(
    function: Any, architecture: int, dtype: torch.dtype, constants: dict[str, Any], stream: torch.dtype | None = None
) -> Any:
    value, base = (f"*{TYPES[kind]}" for kind in (dtype, stream or dtype))
    types: dict[str, Any] = dict.fromkeys(TENSORS, value) | {
        "p_sums": "*fp32",
        "scale": "fp32",
        "p_base": base,
        "p_y": base,
    }
    types |= {"added": (*[f"{value}:16"] * 3, f"{base}:16"), "shape": ("i32:16", "i32:16")}
    if dtype == torch.float32:  # products are finished
        types |= {"p_up": None, "p_weight": None}
    return compiled(function, architecture, types, {}, [*TENSORS, "p_sums", "columns", "channels"], **constants)


def up(architecture: int, dtype: torch.dtype, width: int, lead: int = 1, config: ProjectionConfig | None = None) -> Any:
    config = config or up_config(DIM, width, dtype, architecture)
    options = projection.launch_options(DIM, width, config)
    return kernel(msta_kernels.up_kernel, architecture, dtype, {"SPREAD": DIM // width, "LEAD": lead, **options})


def slope(architecture: int, dtype: torch.dtype, width: int, add: bool) -> Any:
    depth = DIM if add else width
    options = projection.launch_options(width, depth, projection.projection_config(width, depth, dtype, architecture))
    return kernel(msta_kernels.slope_kernel, architecture, dtype, {"ADD": add, **options})


def time(architecture: int, dtype: torch.dtype, spread: int, backward: bool, config: TimeConfig | None = None) -> Any:
    config = config or time_config(spread, dtype, architecture)
    sizes = {"BLOCK_P": config.positions, "BLOCK_C": config.channels, "num_warps": config.warps}
    if not backward:
        return kernel(msta_kernels.time_kernel, architecture, dtype, {"LEAD": 1, **sizes})
    sizes["BLOCK_S"] = msta.spread_block(spread)
    constants = {"SPREAD": spread, "LEAD": 1, "AFTER_UP": spread == 1, "SUMS": True, **sizes}
    return kernel(msta_kernels.time_backward_kernel, architecture, dtype, constants)


@every_architecture
@two_dtypes
def test_products(architecture: int, dtype: torch.dtype, tmp_path: Path) -> None:
    for found in (up(architecture, dtype, 256), slope(architecture, dtype, 256, True)):
        assert fits(found, architecture) and spilled(found, tmp_path) == 0


@every_architecture
@every_dtype
@pytest.mark.parametrize(("spread", "backward"), [(1, False), (1, True), (3, True)])
def test_passes_over_frames(architecture: int, dtype: torch.dtype, spread: int, backward: bool, tmp_path: Path) -> None:
    found = time(architecture, dtype, spread, backward)
    assert fits(found, architecture) and spilled(found, tmp_path) == 0


def test_odd_widths_and_other_spreads(tmp_path: Path) -> None:
    for found in (
        up(90, torch.float16, 96, lead=0),
        slope(90, torch.float16, 96, False),
        *(time(90, torch.bfloat16, spread, True) for spread in (2, 6, 48)),
    ):
        assert fits(found, 90) and spilled(found, tmp_path) == 0


def test_a_stream_of_higher_precision(tmp_path: Path) -> None:
    for architecture in (80, 90):
        options = projection.launch_options(DIM, 256, up_config(DIM, 256, torch.bfloat16, architecture))
        constants = {"SPREAD": 3, "LEAD": 1, **options}
        found = kernel(msta_kernels.up_kernel, architecture, torch.bfloat16, constants, torch.float32)
        assert fits(found, architecture) and spilled(found, tmp_path) == 0


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8),
    reason="older releases spill in a tile that only the tuner tries",
)
def test_candidates(tmp_path: Path) -> None:
    for tile in up_candidates(DIM, 256, torch.bfloat16, 90)[1:]:
        found = up(90, torch.bfloat16, 256, config=tile)
        assert fits(found, 90) and spilled(found, tmp_path) == 0, tile
    for spread in (1, 3):
        for config in time_candidates(spread, torch.bfloat16, 90)[1:]:
            found = time(90, torch.bfloat16, spread, True, config)
            assert fits(found, 90) and spilled(found, tmp_path) == 0, config


def test_tokens_move_in_wide_pieces() -> None:
    ptx = up(90, torch.bfloat16, 256).asm["ptx"]
    assert "wgmma.mma_async" in ptx and "st.global.v4.b32" in ptx and not re.search(r"st\.global\.b16", ptx)
    ptx = time(90, torch.bfloat16, 1, False).asm["ptx"]
    assert re.search(r"st\.global\.v[24]\.b32", ptx) and re.search(r"ld\.global\.v[24]\.b32", ptx)
