"""The kernels that join ted_adapter's weights and sum up their gradients, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton.mixer_backward_kernels import mixer_gradients_kernel
from m2clip.kernels.triton.ted_weights import join_kernel, row_sums_kernel, split_kernel
from tests.compiled.compiling import TYPES, compiled, spilled

CASES: list[tuple[Any, dict[str, Any]]] = [
    (join_kernel, {"BLOCK": 1024}),
    (split_kernel, {"BLOCK": 1024}),
    (
        row_sums_kernel,
        {"ALL": True, "PATCHES": True, "CLASS": True, "PATCHES_ONLY": False, "BLOCK_M": 256, "BLOCK_C": 16},
    ),
    (mixer_gradients_kernel, {"TEMPORAL": True, "DIFFERENCE": True, "SHARED": True, "BLOCK_M": 64, "BLOCK_C": 32}),
]


@pytest.mark.parametrize(("kernel", "constants"), CASES, ids=[kernel.__name__ for kernel, _ in CASES])
@pytest.mark.parametrize("architecture", [80, 120])
def test_no_spills(kernel, constants, architecture, tmp_path: Path) -> None:
    names = [name for name in kernel.arg_names if name.startswith("p_")]
    types = dict.fromkeys(names, f"*{TYPES[torch.bfloat16]}") | {"p_sums": "*fp32", "p_partial": "*fp32"}
    types = {name: kind for name, kind in types.items() if name in names}
    found = compiled(kernel, architecture, types, constants, [*names, "size", "width", "dim"])
    assert spilled(found, tmp_path) == 0
    assert "ld.global.v4.b32" in found.asm["ptx"] or "ld.global.v2.b32" in found.asm["ptx"]
