"""bottleneck_adapter and bias_gelu on a GPU against the reference in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.workloads import bottleneck, gelu
from m2clip.kernels import reference
from m2clip.kernels.gelu_ops import ACTIVATIONS as GELUS
from tests.gpu.workloads import BACKENDS, DTYPES, assert_proven, require

ACTIVATIONS = tuple(reference.ACTIVATIONS)
SHAPES = {
    "text": ((400, 13, 512), 384),
    "text-narrow": ((400, 13, 512), 64),
    "b16": ((8, 197, 768), 384),
    "b16-narrow": ((16, 197, 768), 64),
    "l14": ((4, 257, 1024), 256),
}
on_every_backend = pytest.mark.parametrize("backend", BACKENDS["bottleneck_adapter"])


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_clip(shape, activation, dtype, backend):
    assert_proven(bottleneck(*SHAPES[shape], activation), backend, dtype)


@on_every_backend
@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 33), (40,), (2300, 16), (1, 1, 129)], ids=str)
@pytest.mark.parametrize("width", [1, 9, 37, 130])
def test_odd_shapes_and_options(shape, width, backend):
    every = itertools.product(ACTIVATIONS, ((1.0, True), (0.3, True), (2.0, False)))
    for number, (activation, (scale, residual)) in enumerate(every):
        work = bottleneck(shape, width, activation, scale, residual, strided=number % 2 == 1)
        assert_proven(work, backend, DTYPES[number % 3])


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
    for shape in ((8, 197, 3072), (400, 13, 2048), (5, 37), (129,), (0, 64), (70001, 3)):
        assert_proven(gelu(shape, activation, strided=shape[0] == 5), backend, dtype)
