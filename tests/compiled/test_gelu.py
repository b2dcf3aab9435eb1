"""The kernels of bias_gelu in every configuration, compiled without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton import gelu
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

BACKWARD = {"DH": True, "SUMS": True}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bias_gelu(architecture: int, dtype: torch.dtype, backward: bool, tmp_path: Path) -> None:
    assert_good(gelu.gelu_config(3072, dtype.itemsize), architecture, dtype, backward, tmp_path)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("config", gelu.gelu_candidates(3072, 2), ids=str)
def test_candidates(config: gelu.GELUConfig, backward: bool, tmp_path: Path) -> None:
    assert_good(config, 90, torch.bfloat16, backward, tmp_path)


def assert_good(config: gelu.GELUConfig, architecture: int, dtype: torch.dtype, backward: bool, folder: Path) -> None:
    wide = ("p_h", "p_g", "p_dg", "p_dh")
    types = dict.fromkeys(wide, f"*{TYPES[dtype]}") | {"p_bias": "*fp32", "p_sums": "*fp32"}
    constants: dict[str, Any] = {"KIND": "gelu", "BLOCK_M": config.rows, "BLOCK_C": config.columns}
    kernel = gelu.bias_gelu_kernel
    if backward:
        kernel = gelu.bias_gelu_backward_kernel
        constants |= BACKWARD | {"STEPS": config.steps}
    found = compiled(kernel, architecture, types, constants, [*types, "width"], num_warps=config.warps)
    assert fits(found, architecture)
    assert spilled(found, folder) == 0
    # A thread's values of a row are moved sixteen bytes at a time; the bias, which every row shares, may be narrower.
    whole = config.rows * config.columns * dtype.itemsize // (16 * 32 * config.warps)
    stores = re.findall(r"st\.global\.(\S+)", found.asm["ptx"])
    assert stores.count("v4.b32") >= whole
