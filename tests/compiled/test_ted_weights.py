"""The kernels that join ted_adapter's weights and sum up their gradients, compiled without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels.triton.mixer_backward_kernels import mixer_gradients_kernel
from m2clip.kernels.triton.ted_weights import join_kernel, row_sums_kernel, split_kernel, table_kernel
from tests.compiled.compiling import TYPES, compiled, spilled

WEIGHT, TABLE = f"*{TYPES[torch.bfloat16]}:16", "*fp32:16"
TABLES: dict[str, Any] = {"temporal": (WEIGHT,) * 2, "difference": (WEIGHT,) * 3}
# Kernels, types of their arguments, constants.
CASES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (
        join_kernel,
        TABLES | {"te": (WEIGHT,) * 3, "td": (WEIGHT,) * 3, "joined": (WEIGHT,) * 3, "tables": (TABLE,) * 2},
        {"BLOCK": 1024, "BLOCK_R": 32},
    ),
    (table_kernel, TABLES | {"p_temporal": TABLE, "p_difference": TABLE}, {"BLOCK_R": 32}),
    (
        split_kernel,
        {"p_down": WEIGHT, "p_up": WEIGHT, "downs": (WEIGHT,) * 2, "ups": (WEIGHT,) * 2},
        {"PARTS": 2, "BLOCK": 1024},
    ),
    (
        row_sums_kernel,
        dict.fromkeys(("p_dy", "p_all", "p_patches"), WEIGHT) | {"p_partial": TABLE},
        {"ALL": True, "PATCHES": True, "CLASS": True, "PATCHES_ONLY": False, "BLOCK_M": 256, "BLOCK_C": 16},
    ),
    (
        mixer_gradients_kernel,
        {"p_temporal_sums": TABLE, "p_difference_sums": TABLE, "temporal": (WEIGHT,) * 3, "difference": (WEIGHT,) * 3},
        {"SHARED": False, "BLOCK_M": 64, "BLOCK_C": 32},
    ),
]


@pytest.mark.parametrize(("kernel", "types", "constants"), CASES, ids=[kernel.__name__ for kernel, *_ in CASES])
@pytest.mark.parametrize("architecture", [80, 120])
def test_no_spills(kernel, types, constants, architecture, tmp_path: Path) -> None:
    found = compiled(kernel, architecture, types, constants, ["size", "width", "dim"])
    assert spilled(found, tmp_path) == 0
    assert kernel is table_kernel or re.search(r"ld\.global\S*\.v[24]\.b32", found.asm["ptx"])
