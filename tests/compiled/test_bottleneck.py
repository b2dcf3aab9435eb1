"""The kernels of bottleneck_adapter in every configuration, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton import bottleneck, bottleneck_kernels, projection
from m2clip.kernels.triton.bottleneck import TWO_LAUNCHES, BottleneckConfig, bottleneck_candidates, bottleneck_config
from tests.compiled.compiling import SHARED_MEMORY, TYPES, compiled, fits, spilled

DIM = 768
TENSORS = ("p_x", "p_dy", "p_down", "p_down_bias", "p_bias", "p_up", "p_up_bias", "p_h", "p_g", "p_y", "p_dx")
# One launch, with the widest bottleneck as well, and two.
CASES = [(torch.float32, 384), (torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 384)]


def kernel(
    architecture: int,
    dtype: torch.dtype,
    width: int,
    backward: bool,
    config: BottleneckConfig | None = None,
    activation: str = "gelu",
) -> Any:
    """The kernel that holds the activation: all of one launch, or the first of two."""
    config = config or bottleneck_config(width, dtype, architecture)
    constants: dict[str, Any] = {"KIND": activation}
    if config == TWO_LAUNCHES:
        found = bottleneck_kernels.hidden_gradient_kernel if backward else bottleneck_kernels.hidden_kernel
        tiles = projection.projection_config(width, DIM, dtype, architecture)
        options = projection.launch_options(width, DIM, tiles)
    else:
        found = bottleneck_kernels.bottleneck_backward_kernel if backward else bottleneck_kernels.bottleneck_kernel
        constants["RESIDUAL"] = True
        options = bottleneck.one_launch_options(width, DIM, config)
    value = f"*{TYPES[dtype]}"
    types: dict[str, Any] = dict.fromkeys(TENSORS, value) | {"scale": "fp32", "shape": ("i32:16", "i32:16")}
    types["written"] = (f"{value}:16", f"{value}:16", "*fp32:16")
    if dtype == torch.float32:  # the product is finished
        types["p_up" if backward else "p_down"] = None
    return compiled(found, architecture, types, constants, TENSORS, **options)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("dtype", "width"), CASES, ids=str)
@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_static_rule(architecture: int, dtype: torch.dtype, width: int, backward: bool, tmp_path: Path) -> None:
    found = kernel(architecture, dtype, width, backward)
    assert fits(found, architecture)
    assert spilled(found, tmp_path) == 0


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("width", [64, 128])
def test_candidates(width: int, backward: bool, tmp_path: Path) -> None:
    others = [config for config in bottleneck_candidates(width, torch.float16, 90)[1:] if config != TWO_LAUNCHES]
    assert others
    for config in others:
        found = kernel(90, torch.float16, width, backward, config)
        assert fits(found, 90), config
        assert spilled(found, tmp_path) == 0, config


@pytest.mark.parametrize("activation", ["quick_gelu", "relu", "none"])
def test_the_other_activations(activation: str, tmp_path: Path) -> None:
    for backward in (False, True):
        found = kernel(90, torch.bfloat16, 64, backward, activation=activation)
        assert fits(found, 90) and spilled(found, tmp_path) == 0


@pytest.mark.parametrize("width", [64, 384])
def test_hopper_gets_its_own_instructions(width: int) -> None:
    for backward in (False, True):
        ptx = kernel(90, torch.bfloat16, width, backward).asm["ptx"]
        assert "wgmma.mma_async" in ptx and "cp.async.cg.shared.global" in ptx
        assert "st.global.v4.b32" in ptx and "st.global.b16" not in ptx
