"""Projections in every configuration of the static rule, compiled without a GPU."""

from __future__ import annotations

import pytest
import torch

from m2clip.kernels.triton import projection
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("depth", [64, 384, 768])
def test_projection(architecture: int, dtype: torch.dtype, depth: int) -> None:
    types = dict.fromkeys(("p_a", "p_b", "p_residual", "p_out"), f"*{TYPES[dtype]}")
    types |= dict.fromkeys(("p_class_bias", "p_patch_bias"), "*fp32")
    config = projection.projection_config(768, depth, dtype)
    tiles = {"BLOCK_M": config.rows, "BLOCK_N": config.columns, "BLOCK_K": config.depth, "GROUP": config.group}
    for bias in (True, False):
        constants = {"RESIDUAL": True, "BIAS": bias, "CLASS": True, "PRECISION": "ieee"}
        found = compiled(
            projection.projection_kernel,
            architecture,
            types,
            constants | tiles,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        assert fits(found, architecture)
