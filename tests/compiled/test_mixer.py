"""The mixer's kernels in every configuration of the static rule, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2clip.kernels.triton import mixer, mixer_kernels
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", ["both", "shared", "temporal", "difference"])
def test_mixer(architecture: int, dtype: torch.dtype, layout: str, tmp_path: Path) -> None:
    temporal, difference = layout != "difference", layout != "temporal"
    values = dict.fromkeys(("p_h", "p_u", "p_du", "p_dh"), f"*{TYPES[dtype]}")
    floats = ("p_te_taps", "p_te_bias", "p_td_taps", "p_td_bias", "p_taps", "p_bias", "p_down_bias", "p_sums")
    types = values | dict.fromkeys(floats, "*fp32")
    for width in (64, 384):
        for backward in (False, True):
            config = mixer.mixer_config(width, dtype.itemsize, backward)
            tiles = {"BLOCK_P": config.tokens, "BLOCK_C": config.channels}
            if not backward:
                switches = {"TEMPORAL": temporal, "DIFFERENCE": difference, "SHARED": layout == "shared", "CLASS": 1}
                kernels = [(mixer_kernels.mixer_forward_kernel, switches)]
            else:
                kernels = [(mixer_kernels.temporal_backward_kernel, {"MIX": True})] if temporal else []
                if difference:
                    switches = {"MIX": True, "ADD": layout == "shared", "CLASS": 1}
                    kernels.append((mixer_kernels.difference_backward_kernel, switches))
            for kernel, constants in kernels:
                found = compiled(kernel, architecture, types, constants | tiles, num_warps=config.warps)
                assert fits(found, architecture)
                assert spilled(found, tmp_path) <= 2 * 8  # two addresses; the tile twice as large: hundreds of bytes
