"""The mixer's kernels in every configuration of the static rule and of the tuner, compiled without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton import mixer_backward_kernels, mixer_kernels
from m2clip.kernels.triton.mixer import MixerConfig, mixer_candidates, mixer_config
from m2clip.kernels.triton.tiles import Layout
from tests.compiled.compiling import (
    SHARED_MEMORY,
    TYPES,
    compiled,
    fits,
    frame_loop,
    machine_code,
    registers,
    spilled,
)

TARGETS = [*((architecture, torch.bfloat16) for architecture in SHARED_MEMORY), (120, torch.float32)]
BRANCHES = ("temporal", "difference", "shared")
# Registers of a thread, forwards and backwards. Of the 64 warps of a multiprocessor 24 fit with 80, 20 with 96, 16 with
# 128, 12 with 168.
MOST_16 = {"temporal": (80, 80), "difference": (96, 128), "shared": (136, 168)}
MOST_32 = {"temporal": (80, 80), "difference": (96, 128), "shared": (168, 168)}


def kernel(
    branch: str,
    backward: bool,
    config: MixerConfig,
    architecture: int,
    dtype: torch.dtype,
    width: int = 384,
    clip_size: str = "i32",
) -> Any:
    aligned = "" if width * dtype.itemsize % 16 else ":16"
    types = dict.fromkeys(("p_h", "p_u", "p_du", "p_dh", "p_down_bias"), f"*{TYPES[dtype]}:16") | {
        "p_temporal": None if branch == "difference" else "*fp32:16",
        "p_difference": "*fp32:16",
        "p_sums": f"*fp32{aligned}",
        "clip_size": clip_size,
    }
    columns = width if branch == "shared" else 2 * width
    constants = {"LAYOUT": Layout(width, columns, 1, False), "BLOCK_C": config.channels}
    module = mixer_backward_kernels if backward else mixer_kernels
    name = f"{'temporal' if branch == 'temporal' else 'difference'}_{'backward' if backward else 'forward'}_kernel"
    constants["BLOCK_P" if branch == "temporal" else "BLOCK_G"] = config.tokens // config.adjacent
    if branch != "temporal":
        constants["ADJACENT"] = config.adjacent
        if backward:
            constants["EVEN"] = True
    return compiled(
        getattr(module, name), architecture, types, constants, num_warps=config.warps, maxnreg=config.registers or None
    )


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS, ids=str)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_static_rule(backward, branch, dtype, architecture, tmp_path: Path) -> None:
    config = mixer_config(384, dtype.itemsize, branch, backward)
    found = kernel(branch, backward, config, architecture, dtype)
    assert fits(found, architecture)
    assert spilled(found, tmp_path) == 0
    assert registers(found, tmp_path) <= (MOST_16 if dtype.itemsize == 2 else MOST_32)[branch][backward]
    assert not re.search(r"ld\.global\S*\.b16", found.asm["ptx"])  # weights and rows are read by vectors


@pytest.mark.parametrize(("branch", "most"), [("difference", 60), ("shared", 82)])
@pytest.mark.parametrize("architecture", [80, 90])
def test_instructions_of_a_backward_pass(architecture, branch, most, tmp_path: Path) -> None:
    """Most instructions that a value of dh takes, with u of the same turn."""
    config = mixer_config(384, 2, branch, True)
    found = kernel(branch, True, config, architecture, torch.bfloat16)
    loop = frame_loop(found, tmp_path)
    assert len(loop) / (machine_code.stored(loop) / 4) <= most  # two bytes of each


def test_clips_of_more_values_than_32_bits_count() -> None:
    config = mixer_config(384, 2, "difference", True)
    found = kernel("difference", True, config, 90, torch.bfloat16, clip_size="i64")
    assert "tensor<16x32xi64" in found.asm["ttgir"]  # offsets


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_widths_that_are_not_aligned(backward, branch, tmp_path: Path) -> None:
    found = kernel(branch, backward, mixer_config(37, 2, branch, backward), 90, torch.float16, width=37)
    assert fits(found, 90)
    assert spilled(found, tmp_path) <= 2 * 8


@pytest.mark.parametrize(
    ("branch", "backward", "config"),
    [
        (branch, backward, config)
        for branch in BRANCHES[:2]
        for backward in (False, True)
        for config in mixer_candidates(384, 2, branch, backward)[1:]
    ],
    ids=str,
)
def test_candidates(branch, backward, config, tmp_path: Path) -> None:
    found = kernel(branch, backward, config, 90, torch.bfloat16)
    assert fits(found, 90)
    assert spilled(found, tmp_path) <= 2 * 8
