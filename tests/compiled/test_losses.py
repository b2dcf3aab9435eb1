"""The kernels of the contrastive losses in every configuration of the static rule and of the tuner, compiled without a
GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton import losses
from m2clip.kernels.triton.loss_backward_kernels import loss_backward_kernel
from m2clip.kernels.triton.loss_kernels import cross_entropy_kernel, soft_target_kernel
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

DIM, FEW, MANY = 512, 400, 400_000
FEATURES = ("p_v", "p_w")
FLOATS = ("p_scale", "p_loss", "p_dots", "p_state", "p_parts", "p_same", "p_gradient", "p_dscale")
OTHERS = {"p_targets": "*i64", "p_labels": "*i64", "p_arrived": "*i32", "target_scale": "fp32"}
ALIGNED = (*FEATURES, "p_dots", "p_state", "p_parts", "p_same", "dim")
# The compiler leaves a few addresses on the stack where that spares a program registers and so lets more of them run;
# with the dot products of a tile twice as large it would be hundreds of bytes.
ADDRESSES = 6 * 8
PAIRS = [(architecture, torch.float32) for architecture in SHARED_MEMORY] + [(90, torch.bfloat16), (120, torch.float16)]


def forward(soft: bool, config: losses.LossConfig, architecture: int, dtype: torch.dtype, kept: bool) -> Any:
    types = dict.fromkeys(FEATURES, f"*{TYPES[dtype]}") | dict.fromkeys(FLOATS, "*fp32") | OTHERS
    constants = {"KEEP": kept, "BLOCK_M": config.rows, "BLOCK_N": config.columns, "BLOCK_K": config.depth}
    kernel = soft_target_kernel if soft else cross_entropy_kernel
    options = {"num_stages": config.stages, "num_warps": config.warps}
    return compiled(kernel, architecture, types, constants, ALIGNED, **options)


def backward(soft: bool, config: losses.GradientConfig, architecture: int, dtype: torch.dtype, kept: bool) -> Any:
    feature = f"*{TYPES[dtype]}:16"
    types: dict[str, Any] = dict.fromkeys(FLOATS, "*fp32") | OTHERS
    types |= {"features": (feature, feature), "saved": ("*fp32:16", "*fp32:16"), "written": (feature, feature)}
    options = losses.gradient_options(soft, kept, dtype, config)
    return compiled(loss_backward_kernel, architecture, types, {}, ALIGNED, **options)


@pytest.mark.parametrize(("architecture", "dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("columns", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft targets"])
def test_static_rule(soft, columns, architecture, dtype, tmp_path: Path) -> None:
    kept, config = columns == FEW, losses.loss_config(DIM, columns, dtype)
    found = [forward(soft, config, architecture, dtype, kept)]
    if soft != kept:  # of the two kinds of slopes one is compiled with dot products that are kept, the other without
        found.append(backward(soft, losses.gradient_config(DIM, columns, dtype), architecture, dtype, kept))
    for kernel in found:
        assert fits(kernel, architecture)
        assert spilled(kernel, tmp_path) <= ADDRESSES


@pytest.mark.parametrize("columns", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_candidates(dtype, columns, tmp_path: Path) -> None:
    for config in losses.loss_candidates(DIM, columns, dtype)[1:]:
        found = forward(False, config, 90, dtype, columns == FEW)
        assert fits(found, 90) and spilled(found, tmp_path) <= ADDRESSES, config


@pytest.mark.parametrize("columns", [FEW, MANY], ids=["few", "many"])
def test_gradient_candidates(columns, tmp_path: Path) -> None:
    for config in losses.gradient_candidates(DIM, columns, torch.bfloat16)[1:]:
        found = backward(False, config, 90, torch.bfloat16, columns == FEW)
        assert fits(found, 90) and spilled(found, tmp_path) <= ADDRESSES, config


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft targets"])
def test_matrices_are_loaded_in_wide_pieces(soft) -> None:
    """Whatever the number of classes is; narrow are the vectors over the other side's features, an instruction each."""
    config = losses.gradient_config(DIM, FEW, torch.bfloat16)
    ptx = backward(soft, config, 90, torch.bfloat16, True).asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (0x\w+), ", ptx)
    vectors = 2 * 5 + 2 if soft else 1 + 4  # two inverses, softmaxes and targets of each side, labels
    assert len(copies) > config.stages * vectors
    assert sum(int(size, 16) < 16 for size in copies) <= config.stages * vectors


def test_dot_products_of_fp32_features_are_exact_and_added_up_in_fp32() -> None:
    """Neither tf32 nor sums of the tensor cores, which truncate: every tile of features starts from zeros."""
    exact = forward(False, losses.loss_config(DIM, MANY, torch.float32), 90, torch.float32, False)
    assert "mma" not in exact.asm["ptx"]
    half = forward(False, losses.loss_config(DIM, MANY, torch.bfloat16), 90, torch.bfloat16, False)
    assert "mma" in half.asm["ptx"]
    sums = re.findall(r"(?:warp_group_dot|tt\.dot) \S+, \S+, (\S+)", half.asm["ttgir"])
    assert sums and all(name.startswith("%cst") for name in sums)
