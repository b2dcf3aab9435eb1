"""A kernel is compiled once for a model, not again for another batch, length of clip or number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from triton.runtime import JITFunction

from m2clip.kernels.triton import (
    bottleneck_kernels,
    gelu,
    loss_backward_kernels,
    loss_kernels,
    mixer_backward_kernels,
    mixer_kernels,
    msta_kernels,
    one_pass_kernels,
)

MODULES = (
    *(bottleneck_kernels, gelu, loss_backward_kernels, loss_kernels, msta_kernels),
    *(mixer_kernels, mixer_backward_kernels, one_pass_kernels),
)
# Sizes that vary with the input. What else a kernel takes as a number is a width of the model.
VARY = {"rows", "clips", "frames", "positions", "position_step", "frame_step", "clip_rows"}
VARY |= {"tiles", "v_programs", "v_tiles", "w_tiles"}
VARY |= {"tokens", "grid_height", "grid_width", "blocks_p", "blocks_g", "groups", "ahead", "mixes", "temporal_tiles"}
VARY |= {"temporal_rows", "difference_rows"}


def kernels(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name.endswith("_kernel") and isinstance(value, JITFunction):
            yield name, value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_no_size_of_the_input_is_specialised(module: ModuleType) -> None:
    found = dict(kernels(module))
    assert found
    for name, kernel in found.items():
        varying = [parameter for parameter in kernel.params if parameter.name in VARY]
        assert varying and all(parameter.do_not_specialize for parameter in varying), name
