"""The Triton kernels of ted_adapter against the reference in fp64.

bf16 is left to a GPU: the interpreter's tl.dot is wrong in it.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels.proof import assert_as_exact
from tests.kernels.test_native_ted import FRAMES, GRIDS, LAYOUTS, case

# The interpreter is slow: long clips on small grids, large grids in short clips.
SHAPES = [(frames, grid) for frames in FRAMES for grid in GRIDS if frames * grid[0] * grid[1] <= 400]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("frames", "grid"), SHAPES, ids=str)
def test_triton_is_as_exact_as_eager(frames, grid, layout):
    turn = FRAMES.index(frames) + GRIDS.index(grid) + LAYOUTS.index(layout)  # the other options take turns
    options = {"class_token": turn % 2 == 0, "sequential": turn % 3 == 0, "strided": turn % 5 == 0}
    run = case(frames, grid, layout, 1, **options)
    dtype = (torch.float32, torch.float16)[turn % 2]
    assert_as_exact(run(torch.float64, "reference"), run(dtype, "reference"), run(dtype, "triton"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches(layout):
    y, *gradients = case(2, (3, 3), layout, clips=0)(torch.float32, "triton")
    assert y.shape == (0, 10, 21)
    assert not any(gradient.any() for gradient in gradients)
