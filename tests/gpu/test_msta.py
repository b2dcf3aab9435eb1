"""msta_adapter on a GPU against the reference in fp64: both readings and text, both layouts of frames."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import msta
from m2clip.kernels import TimeLayout
from tests.gpu.workloads import BACKENDS, DTYPES, SMALL, assert_proven, require
from tests.kernels.proof import assert_operator_is_sound

SHAPES = {
    "b16": ((16, 197, 768), 256, TimeLayout(8)),
    "b16-narrow": ((16, 197, 768), 128, TimeLayout(8)),
    "viclip": ((2, 1 + 8 * 196, 768), 256, TimeLayout(8, joint=True)),
    "l14": ((8, 257, 1024), 256, TimeLayout(8)),
    "text": ((400, 20, 512), 256, None),
}
on_every_backend = pytest.mark.parametrize("backend", BACKENDS["msta_adapter"])


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("after_up", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_clip(shape, after_up, dtype, backend):
    assert_proven(msta(*SHAPES[shape], after_up), backend, dtype)


@on_every_backend
@pytest.mark.parametrize("frames", [1, 2, 3, 16])
@pytest.mark.parametrize("joint", [False, True])
def test_odd_widths_and_lengths(joint, frames, backend):
    for number, (dim, width) in enumerate(((48, 16), (26, 13), (20, 20), (258, 129))):
        for after_up in (False, True):
            for positions in (0, 1, 37) if joint else (1, 37):
                shape = (3, 1 + positions * frames, dim) if joint else (2 * frames, positions, dim)
                work = msta(shape, width, TimeLayout(frames, joint), after_up, strided=number % 2 == 1)
                assert_proven(work, backend, DTYPES[number % 3])


@on_every_backend
def test_empty_batches(backend):
    require(backend)
    for time in (None, TimeLayout(2), TimeLayout(2, joint=True)):
        work = msta((0, 5, 48), 16, time)
        y, *gradients = work.results(work.placed(torch.bfloat16), backend)
        assert y.shape == (0, 5, 48)
        assert not any(gradient.any() for gradient in gradients)


@on_every_backend
def test_opcheck(backend):
    require(backend)
    x, base, *weights = SMALL["msta_adapter"]().placed(torch.float32).values()
    needs = ([True, False, True], [False, False, True], [True, False, False])
    assert_operator_is_sound("msta_adapter", (x, base, weights, 3, False, False, 0.3, backend), needs)
