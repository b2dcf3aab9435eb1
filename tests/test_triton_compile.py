"""Every Triton kernel and launch configuration, compiled without a GPU for the architectures that it is meant for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from m2clip.kernels.triton import mixer, mixer_kernels, projection  # noqa: E402

SHARED_MEMORY = {80: 163, 90: 227, 100: 227, 120: 99}  # KB a block may use
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def compiled(kernel: Any, architecture: int, types: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
    """The kernel for an architecture; types are those of its arguments that are no constants, integers by default."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "i32") for name in names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def fits(found: Any, architecture: int) -> bool:
    return found.metadata.shared <= SHARED_MEMORY[architecture] * 1024


def spilled(found: Any, folder: Path) -> int:
    """Bytes of stack a thread uses, which is what does not fit into its registers."""
    (folder / "kernel.cubin").write_bytes(found.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True)
    return int(re.search(r"STACK:(\d+)", report.stdout)[1])


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
