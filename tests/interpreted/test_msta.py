"""The Triton kernels of msta_adapter against the reference in fp64: both readings and text, both layouts of frames."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from benchmarks import traffic
from m2clip.kernels import MSTAWeights
from m2clip.kernels.triton import msta
from m2clip.kernels.triton.msta import TimeConfig, time_candidates, time_config
from tests.kernels.proof import assert_as_exact, assert_operator_is_sound, assert_proven
from tests.kernels.test_msta import READINGS, autocast_results, problem, results

# D, d: three, two, one and seven columns of a channel; wider than a tile of the convolution, and odd.
WIDTHS = ((48, 16), (26, 13), (20, 20), (35, 5), (150, 75))


@pytest.fixture(autouse=True)
def memory_that_is_not_zero() -> Iterator[None]:
    """New tensors are filled with NaN, as long as every algorithm has to be deterministic."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("reading", READINGS)
def test_triton_is_as_exact_as_eager(reading, frames, joint, dtype):
    for dim, width in WIDTHS if dtype == torch.float32 and frames < 8 else WIDTHS[:2]:
        inputs, weights, time = problem(reading, frames, joint, dim=dim, width=width)
        run = partial(results, inputs=inputs, weights=weights, time=time, strided=width % 2 == 1)
        assert_proven(run, dtype, "triton", repeat=dim == WIDTHS[0][0])


@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
@pytest.mark.parametrize("reading", READINGS[:2])
def test_many_positions_and_few_sums(reading, joint, monkeypatch):
    """A program of the backward pass works on several blocks of positions and clips."""
    monkeypatch.setattr(msta, "MOST_SUMS", 2)
    inputs, weights, time = problem(reading, 3, joint, clips=3, positions=37, dim=24, width=12)
    run = partial(results, inputs=inputs, weights=weights, time=time)
    assert_proven(run, torch.float32, "triton", repeat=True)


@pytest.mark.parametrize("reading", READINGS[:2])
def test_class_tokens_alone(reading):
    inputs, weights, time = problem(reading, 2, True, clips=3, positions=0)
    assert_proven(partial(results, inputs=inputs, weights=weights, time=time), torch.float32, "triton")


@pytest.mark.parametrize("reading", READINGS)
def test_under_autocast_the_stream_keeps_its_precision_and_is_read_once(reading):
    (x, base), weights, time = problem(reading, 3, True, clips=3)
    inputs = [x.half().double(), base * 1000]  # in fp16 a thousand is off by a quarter
    weights = MSTAWeights(*(w.half().double() if torch.is_tensor(w) else w for w in weights))
    truth = results(torch.float64, "reference", inputs, weights, time)
    eager = autocast_results(torch.float16, "reference", inputs, weights, time)
    ours = autocast_results(torch.float16, "triton", inputs, weights, time)
    assert all(tensor.dtype == torch.float32 for tensor in ours)
    assert_as_exact(truth, eager, ours)
    assert torch.equal(ours[2], eager[2])  # the gradient of the stream
    half = MSTAWeights(*(w.half() if torch.is_tensor(w) else w for w in weights))
    x, base = x.half(), base.float()
    launches = traffic.count(lambda: msta.forward(x, base, half, time, 0.5, False))
    assert len(launches) == (4 if reading == "after_up" else 3)
    assert launches[-1].read >= base.nbytes and launches[-1].written == base.nbytes


@pytest.mark.parametrize("reading", READINGS)
def test_empty_batches(reading):
    inputs, weights, time = problem(reading, 2, False, clips=0)
    y, *gradients = results(torch.float16, "triton", inputs, weights, time)
    assert y.numel() == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("reading", READINGS[:2])
def test_every_candidate_gives_the_same(reading, monkeypatch):
    inputs, weights, time = problem(reading, 3, True, positions=9, dim=36, width=12)
    expected = results(torch.float32, "triton", inputs, weights, time)
    for config in (*time_candidates(3 if reading == "grouped" else 1, torch.bfloat16, 90)[1:], TimeConfig(1, 8, 1)):
        monkeypatch.setattr(msta, "time_config", lambda *_, config=config: config)
        found = results(torch.float32, "triton", inputs, weights, time)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reading", READINGS)
def test_what_is_not_needed_changes_nothing(reading):
    (x, base), weights, time = problem(reading, 2, True)
    x, base = x.float(), base.float()
    weights = MSTAWeights(*(w.float() if torch.is_tensor(w) else w for w in weights))
    y, first, second = msta.forward(x, base, weights, time, 0.5, True)
    alone, *nothing = msta.forward(x, base, weights, time, 0.5, False)
    assert torch.equal(alone, y) and not any(tensor.numel() for tensor in nothing)
    dx, gradients = msta.backward(base, x, first, second, weights, time, 0.5, True, True)
    only_x, none = msta.backward(base, x, first, second, weights, time, 0.5, True, False)
    assert torch.equal(only_x, dx) and none == []
    no_x, only_weights = msta.backward(base, x, first, second, weights, time, 0.5, False, True)
    assert no_x.numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, only_weights, strict=True))


@pytest.mark.parametrize("reading", READINGS)
def test_operator(reading):
    inputs, weights, time = problem(reading, 2, False, dim=12, width=4)
    x, base = (tensor.float() for tensor in inputs)
    options = (0 if time is None else 2, False, weights.after_up, 0.5, "triton")
    arguments = (x, base, [w.float() for w in weights if torch.is_tensor(w)], *options)
    needs = ([True, False, True], [False, False, True], [True, False, False])
    assert_operator_is_sound("msta_adapter", arguments, needs)


def test_a_tile_holds_whole_channels_and_some_thousand_values():
    for spread in (1, 2, 3, 6, 12, 48):
        for config in time_candidates(spread, torch.bfloat16, 90):
            assert config.positions * config.channels * msta.spread_block(spread) <= 4096
    assert time_config(3, torch.bfloat16, 90) == TimeConfig(8, 32, 4)
