"""The Triton kernels of bottleneck_adapter against the reference in fp64, in one launch and in two."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from m2clip import kernels
from m2clip.kernels.ops.bottleneck import ACTIVATIONS
from m2clip.kernels.triton import bottleneck
from tests.kernels.proof import assert_operator_is_sound, assert_proven
from tests.kernels.test_native_bottleneck import inputs, run

SHAPES = (((3, 5, 24), 16), ((7, 33), 37), ((40,), 9), ((0, 4, 8), 8), ((300, 16), 12), ((2, 75, 70), 100), ((8, 3), 2))
OPTIONS = ({}, {"scale": 0.3}, {"residual": False, "scale": 2.0}, {"strided": True})
ONE_LAUNCH = bottleneck.BottleneckConfig(32, 32, 2, 4)


@pytest.fixture(autouse=True)
def memory_that_is_not_zero() -> Iterator[None]:
    """New tensors are filled with NaN, as long as every algorithm has to be deterministic."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("launches", "dtype"), [(1, torch.float16), (2, torch.float16), (2, torch.float32)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "width"), SHAPES, ids=str)
def test_triton_is_as_exact_as_eager(activation, shape, width, dtype, launches, monkeypatch):
    config = ONE_LAUNCH if launches == 1 else bottleneck.TWO_LAUNCHES
    monkeypatch.setattr(bottleneck, "bottleneck_config", lambda *_: config)
    tensors = inputs(shape, width)
    first = list(ACTIVATIONS).index(activation) + launches  # options take turns, two of them each time
    for options in (OPTIONS[first % 4], OPTIONS[(first + 2) % 4]):
        assert_proven(partial(run, tensors, activation=activation, **options), dtype, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("width", [16, 70, 130])
def test_the_static_rule(dtype, width):
    assert_proven(partial(run, inputs((130, 50), width)), dtype, "triton")


@pytest.mark.parametrize("width", [40, 120])
def test_every_candidate_gives_the_same(width):
    x, *weights, dy = (tensor.half() for tensor in inputs((70, 72), width))
    options = weights, "gelu", 0.5, True
    expected = bottleneck.forward(x, *options, True, bottleneck.TWO_LAUNCHES)
    gradients = bottleneck.backward(dy, x, expected[1], *options, True, True, bottleneck.TWO_LAUNCHES)
    configs = bottleneck.bottleneck_candidates(width, torch.float16, 90)
    assert len(set(configs)) == len(configs) > 4
    assert bottleneck.bottleneck_candidates(width, torch.float32, 90) == [bottleneck.TWO_LAUNCHES]
    for config in configs:
        found = bottleneck.forward(x, *options, True, config)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
        dx, others = bottleneck.backward(dy, x, found[1], *options, True, True, config)
        torch.testing.assert_close([dx, *others], [gradients[0], *gradients[1]], rtol=2e-3, atol=5e-2)


@pytest.mark.parametrize("config", [ONE_LAUNCH, bottleneck.TWO_LAUNCHES], ids=["one", "two"])
@pytest.mark.parametrize("residual", [True, False])
def test_what_is_not_needed_changes_nothing(config, residual):
    x, *weights, dy = (tensor.half() for tensor in inputs((40, 24), 20))
    options = weights, "quick_gelu", 0.5, residual
    y, h = bottleneck.forward(x, *options, True, config)
    alone, nothing = bottleneck.forward(x, *options, False, config)
    assert torch.equal(alone, y) and nothing.numel() == 0
    dx, gradients = bottleneck.backward(dy, x, h, *options, True, True, config)
    only_x, none = bottleneck.backward(dy, x, h, *options, True, False, config)
    assert torch.equal(only_x, dx) and none == []
    no_x, only_weights = bottleneck.backward(dy, x, h, *options, False, True, config)
    assert no_x.numel() == 0
    torch.testing.assert_close(only_weights, gradients)


@pytest.mark.parametrize("config", [ONE_LAUNCH, bottleneck.TWO_LAUNCHES], ids=["one", "two"])
def test_bits_do_not_depend_on_the_run(config):
    x, *weights, dy = (tensor.half() for tensor in inputs((90, 40), 36))

    def once() -> list[torch.Tensor]:
        y, h = bottleneck.forward(x, weights, "gelu", 0.5, True, True, config)
        dx, gradients = bottleneck.backward(dy, x, h, weights, "gelu", 0.5, True, True, True, config)
        return [y, h, dx, *gradients]

    first = once()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_far_out(activation):
    """An adapter that is its activation: one weight of 1, no biases."""
    x = torch.tensor([-500.0, -30.0, -1e-30, -0.0, 1e-30, 30.0, 500.0, float("nan")])[:, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y = kernels.bottleneck_adapter(x, one, zero, one, zero, activation=activation, residual=False, backend="triton")
    expected = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(y.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-30)


def test_only_what_is_needed_gets_a_gradient():
    tensors = [tensor.float() for tensor in inputs((4, 6), 3)[:-1]]
    for trained in ((), (0,), (1, 2, 3, 4), (0, 1, 2, 3, 4)):
        leaves = [tensor.clone().requires_grad_(index in trained) for index, tensor in enumerate(tensors)]
        y = kernels.bottleneck_adapter(*leaves, backend="triton")
        assert y.requires_grad == bool(trained)
        if trained:
            y.sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index in trained for index in range(5)]


def test_opcheck():
    x, *weights, _ = (tensor.float() for tensor in inputs((6, 12), 8))
    arguments = (x, weights, "gelu", 0.5, True, "triton")
    assert_operator_is_sound("bottleneck_adapter", arguments, ([True, True], [False, True], [True, False]))
