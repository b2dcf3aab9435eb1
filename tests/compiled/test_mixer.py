"""The mixer's kernels in every configuration of the static rule and of the tuner, compiled without a GPU."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton.mixer import MixerConfig, mixer_candidates, mixer_config
from m2clip.kernels.triton.mixer_backward_kernels import mixer_backward_kernel
from m2clip.kernels.triton.mixer_kernels import mixer_forward_kernel
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

WEIGHTS = ("p_te_taps", "p_te_bias", "p_td_taps", "p_td_bias", "p_down_bias")
VALUES = ("p_h", "p_u", "p_du", "p_dh", *WEIGHTS)
ALIGNED = (*VALUES, "p_sums", "width", "columns")
TARGETS = [*((architecture, torch.bfloat16) for architecture in SHARED_MEMORY), (120, torch.float32)]
BOTH = {"TEMPORAL": True, "DIFFERENCE": True, "SHARED": False, "CLASS": 1, "PATCHES_ONLY": False}


def kernel(
    backward: bool,
    config: MixerConfig,
    architecture: int,
    dtype: torch.dtype,
    switches: dict[str, Any],
    aligned: Collection[str] = ALIGNED,
) -> Any:
    types = dict.fromkeys(VALUES, f"*{TYPES[dtype]}") | {"p_sums": "*fp32"}
    constants = switches | {"BLOCK_P": config.tokens, "BLOCK_C": config.channels}
    if backward:
        constants |= {"WEIGHTS": True, "TILES": config.tiles}
    function = mixer_backward_kernel if backward else mixer_forward_kernel
    return compiled(function, architecture, types, constants, aligned, num_warps=config.warps)


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["both", "shared"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_static_rule(backward, shared, dtype, architecture, tmp_path: Path) -> None:
    config = mixer_config(384, dtype.itemsize, backward)
    found = kernel(backward, config, architecture, dtype, BOTH | {"SHARED": shared})
    assert fits(found, architecture)
    assert spilled(found, tmp_path) <= 2 * 8  # two addresses; a larger tile: hundreds of bytes
    assert "ld.global.v4.b32" in found.asm["ptx"] or (backward and "ld.global.v2.b32" in found.asm["ptx"])


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_widths_that_are_not_aligned(backward, tmp_path: Path) -> None:
    config = mixer_config(37, 2, backward)
    found = kernel(backward, config, 90, torch.float16, BOTH, aligned=VALUES)
    assert fits(found, 90)
    assert spilled(found, tmp_path) <= 2 * 8


@pytest.mark.parametrize(
    ("backward", "config"),
    [(backward, config) for backward in (False, True) for config in mixer_candidates(384, 2, backward)[1:]],
    ids=str,
)
def test_candidates(backward, config, tmp_path: Path) -> None:
    found = kernel(backward, config._replace(tiles=1), 90, torch.bfloat16, BOTH)
    assert fits(found, 90)
    assert spilled(found, tmp_path) <= 2 * 8
