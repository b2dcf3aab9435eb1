"""ted_adapter on a GPU against the reference in fp64: the shapes of CLIP, and every layout, clip length and grid."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import planned, ted
from tests.gpu.workloads import BACKENDS, DTYPES, assert_proven, require
from tests.kernels.test_native_ted import FRAMES, GRIDS, LAYOUTS

B16, B32, L14 = ((14, 14), 768), ((7, 7), 768), ((16, 16), 1024)
CLIP_SHAPES = {
    "b16-r384": (2, 8, *B16, 384),
    "b16-r64": (2, 8, *B16, 64),
    "b16-t16": (1, 16, *B16, 384),
    "b32": (3, 8, *B32, 384),
    "l14": (1, 8, *L14, 384),
}
on_every_backend = pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CLIP_SHAPES)
def test_shapes_of_clip(shape, layout, dtype, backend):
    assert_proven(ted(*CLIP_SHAPES[shape], layout), backend, dtype)


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frames", FRAMES)
def test_clip_lengths_and_grids(frames, layout, backend):
    for number, grid in enumerate(GRIDS):
        turn = number + FRAMES.index(frames) + LAYOUTS.index(layout)  # the other options take turns
        options = {"class_token": turn % 2 == 0, "sequential": turn % 3 == 0, "strided": turn % 5 == 0}
        width = (19, 64)[turn // 2 % 2]
        work = ted((1, 3)[turn % 2], frames, grid, 72, width, layout, **options)
        # Rows of odd widths are read value by value in any dtype.
        assert_proven(work, backend, DTYPES[turn % 3] if width == 64 else torch.float32)


@on_every_backend
@pytest.mark.parametrize(("dim", "width"), [(21, 1), (21, 19), (40, 16), (40, 200), (129, 19)])
def test_odd_widths(dim, width, backend):
    for layout, dtype in zip(LAYOUTS, (*DTYPES, torch.float32), strict=True):
        assert_proven(ted(2, 3, (5, 9), dim, width, layout, strided=width == 19), backend, dtype)


@on_every_backend
@pytest.mark.parametrize(("layout", "width"), zip(LAYOUTS, (384, 64, 384, 64), strict=True))
def test_class_tokens_that_are_left_out(width, layout, backend):
    require(backend)
    work = ted(2, 8, (14, 14), 768, width, layout, patches_only=True)
    dtype = DTYPES[(LAYOUTS.index(layout) + width // 64) % 3]
    leaves = work.placed(dtype)
    for plan in work.plans(leaves, backend):
        with planned(backend, plan):
            assert_proven(work, backend, dtype)
            y, dx = work.results(leaves, backend)[:2]
            assert torch.equal(y[:, 0], leaves["x"][:, 0])
            assert torch.equal(dx[:, 0], work.slope(y)[:, 0])


@on_every_backend
@pytest.mark.parametrize("frames", [33, 64])
def test_long_clips(frames, backend):
    assert_proven(ted(1, frames, (7, 7), 64, 64), backend, torch.bfloat16)


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", CLIP_SHAPES)
def test_every_plan(shape, layout, backend):
    require(backend)
    clips, frames, grid, dim, width = CLIP_SHAPES[shape]
    work = ted(clips, frames, grid, dim, width, layout)
    for dtype in DTYPES:
        leaves = work.placed(dtype)
        for plan in work.plans(leaves, backend)[1:]:
            with planned(backend, plan):
                assert_proven(work, backend, dtype)


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_plan_of_a_width_between_narrow_and_wide(layout, backend):
    require(backend)
    work = ted(1, 8, *L14, 200, layout)
    for plan in work.plans(work.placed(torch.bfloat16), backend):
        with planned(backend, plan):
            assert_proven(work, backend, torch.bfloat16)


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_plan_of_odd_shapes(grid, layout, backend):
    require(backend)
    for frames, dim, width, class_token in ((1, 64, 64, True), (3, 72, 19, True), (8, 72, 64, False)):
        work = ted(2, frames, grid, dim, width, layout, class_token=class_token)
        leaves = work.placed(torch.bfloat16)
        for plan in work.plans(leaves, backend)[1:]:
            with planned(backend, plan):
                assert_proven(work, backend, torch.bfloat16)
                first = work.results(leaves, backend)
                for _ in range(4):
                    again = work.results(leaves, backend)
                    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@on_every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches_and_frames_without_patches(layout, backend):
    require(backend)
    for dtype in DTYPES:
        work = ted(0, 2, (3, 3), 24, 16, layout)
        y, *gradients = work.results(work.placed(dtype), backend)
        assert y.shape == (0, 10, 24)
        assert not any(gradient.any() for gradient in gradients)
    if layout != "difference":  # class tokens alone: nothing for the difference branch
        assert_proven(ted(2, 3, (0, 0), 24, 16, "temporal"), backend, torch.float32)
