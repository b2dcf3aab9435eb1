"""bottleneck_adapter and bias_gelu on a GPU against the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import bottleneck, gelu
from m2clip.kernels.ops.bottleneck import ACTIVATIONS
from m2clip.kernels.ops.gelu import GELUS
from tests.gpu.workloads import BACKENDS, DTYPES, assert_proven, require

SHAPES = {
    "text": ((400, 13, 512), 384),
    "text-narrow": ((400, 13, 512), 64),
    "b16": ((8, 197, 768), 384),
    "b16-narrow": ((16, 197, 768), 64),
    "l14": ((4, 257, 1024), 256),
}
ODD_SHAPES, WIDTHS = ((3, 5, 40), (7, 33), (40,), (2300, 16), (1, 1, 129)), (1, 130)
OPTIONS = ((1.0, True), (0.3, True), (2.0, False))
on_every_backend = pytest.mark.parametrize("backend", BACKENDS["bottleneck_adapter"])


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_clip(shape, activation, dtype, backend):
    assert_proven(bottleneck(*SHAPES[shape], activation), backend, dtype)


@on_every_backend
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_odd_shapes_and_options(shape, width, backend):
    i, j = ODD_SHAPES.index(shape), WIDTHS.index(width)  # by which activations, options and dtypes take turns
    for number, activation in list(enumerate(ACTIVATIONS))[(i + j) % 2 :: 2]:
        scale, residual = OPTIONS[(i + j + number) % 3]
        work = bottleneck(shape, width, activation, scale, residual, strided=(i + number // 2) % 2 == 1)
        assert_proven(work, backend, DTYPES[(i + 2 * j) % 3])


@on_every_backend
def test_empty_batches(backend):
    require(backend)
    work = bottleneck((0, 4, 8), 16)
    y, *gradients = work.results(work.placed(torch.bfloat16), backend)
    assert y.shape == (0, 4, 8)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS["bias_gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", GELUS)
def test_bias_gelu(activation, dtype, backend):
    odd = ((5, 37), (129,), (70001, 3))[DTYPES.index(dtype)]
    for shape in ((8, 197, 3072), (400, 13, 2048), (0, 64), odd):
        assert_proven(gelu(shape, activation, strided=shape[0] == 5), backend, dtype)
