"""msta_adapter: the reference against plain convolutions, the native kernels against the reference in fp64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2clip import kernels
from m2clip.kernels import MSTAWeights, TimeLayout
from m2clip.kernels.native import extension as native
from m2clip.kernels.native import msta as native_msta
from tests.kernels.proof import assert_as_exact, assert_operator_is_sound, assert_proven

needs_extension = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")
READINGS = ("grouped", "after_up", "text")
FRAMES = (1, 2, 3, 8, 16)


def make(dim: int, width: int, reading: str) -> MSTAWeights:
    """Random weights in fp64."""
    generator = torch.Generator().manual_seed(dim + width)

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    projections = (
        *(values(width, dim, scale=dim**-0.5), values(width), values(width, width, scale=width**-0.5), values(width)),
        *(values(dim, width, scale=width**-0.5), values(dim)),
    )
    if reading == "text":
        return MSTAWeights(*projections)
    return MSTAWeights(*projections, values(dim, 1, 3, scale=0.6), values(dim), reading == "after_up")


def tokens(time: TimeLayout | None, clips: int, positions: int, dim: int) -> tuple[int, int, int]:
    if time is None:
        return clips, positions, dim
    return (clips, 1 + positions * time.num_frames, dim) if time.joint else (clips * time.num_frames, positions, dim)


def results(
    dtype: torch.dtype, backend: str, inputs: list[Tensor], weights: MSTAWeights, time, strided=False, of=Tensor.detach
):
    """Output and gradients of x, base and all weights."""
    leaves = [
        of(tensor).to(dtype).requires_grad_() for tensor in (*inputs, *(w for w in weights if torch.is_tensor(w)))
    ]
    x, base, *rest = leaves
    if strided:
        x, base = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (x, base))
    y = kernels.msta_adapter(x, base, MSTAWeights(*rest, after_up=weights.after_up), time, scale=0.3, backend=backend)
    slope = of(torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).to(dtype)
    if strided:
        slope = slope.transpose(1, 2).contiguous().transpose(1, 2)
    return [y, *torch.autograd.grad(y, leaves, slope)]


def problem(reading: str, frames: int, joint: bool, clips: int = 2, positions: int = 5, dim: int = 48, width: int = 16):
    time = None if reading == "text" else TimeLayout(frames, joint)
    generator = torch.Generator().manual_seed(1)
    shape = tokens(time, clips, positions, dim)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return inputs, make(dim, width, reading), time


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("reading", READINGS[:2])
def test_reference_is_the_three_dimensional_convolution(reading, joint):
    (x, base), weights, time = problem(reading, 3, joint, positions=6)
    y = kernels.msta_adapter(x, base, weights, time, scale=1.0, backend="reference")
    h = F.relu(F.linear(x, weights.down_weight, weights.down_bias))
    h = F.relu(F.linear(h, weights.shared_weight, weights.shared_bias))
    branch = F.linear(h, weights.up_weight, weights.up_bias)
    source = branch if weights.after_up else h
    if joint:  # "b (h w t) c -> b c t h w"
        video = source[:, 1:].reshape(2, 2, 3, 3, -1).permute(0, 4, 3, 1, 2)
    else:
        video = source.reshape(2, 3, 2, 3, -1).permute(0, 4, 1, 2, 3)
    kernel = weights.conv_weight[..., None, None]
    mixed = F.conv3d(video, kernel, weights.conv_bias, padding=(1, 0, 0), groups=video.shape[1])
    if joint:
        mixed = F.pad(mixed.permute(0, 3, 4, 2, 1).reshape(2, 18, -1), (0, 0, 1, 0))
    else:
        mixed = mixed.permute(0, 2, 3, 4, 1).reshape(6, 6, -1)
    torch.testing.assert_close(y, base + branch + mixed)


def test_groups_of_several_channels_are_the_reference_s():
    (x, base), weights, time = problem("grouped", 2, False, width=32)
    weights = weights._replace(conv_weight=torch.randn(48, 2, 3, dtype=torch.float64))
    y = kernels.msta_adapter(x.float(), base.float(), MSTAWeights(*(w.float() for w in weights[:8])), time)
    exact = kernels.msta_adapter(x, base, weights, time, backend="reference")
    assert (y - exact).abs().max() < 1e-5


@needs_extension
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("reading", READINGS)
def test_native_is_as_exact_as_eager(reading, frames, joint):
    for dim, width in ((48, 16), (21, 7), (32, 32)):
        inputs, weights, time = problem(reading, frames, joint, dim=dim, width=width)
        run = partial(results, inputs=inputs, weights=weights, time=time, strided=width == 7)
        for dtype in (torch.float32, torch.bfloat16):
            assert_proven(run, dtype, "native", repeat=True)


@needs_extension
def test_long_and_empty_batches_and_every_instruction_set():
    before = native.extension.instruction_set()
    try:
        for name in ("avx512", "avx2", "portable"):
            native.extension.select_instruction_set(name)  # stays as it was where the processor lacks it
            for joint in (False, True):
                inputs, weights, time = problem("grouped", 4, joint, clips=3, positions=150, dim=96, width=32)
                run = partial(results, inputs=inputs, weights=weights, time=time)
                assert_proven(run, torch.float32, "native")
    finally:
        native.extension.select_instruction_set(before)
    for reading in READINGS:
        inputs, weights, time = problem(reading, 2, False, clips=0)
        y, *gradients = results(torch.float32, "native", inputs, weights, time)
        assert y.numel() == 0 and not any(gradient.any() for gradient in gradients)


@needs_extension
def test_bits_do_not_depend_on_the_threads():
    inputs, weights, time = problem("grouped", 8, False, positions=200, dim=96, width=32)
    convolution = native_msta._Convolution(MSTAWeights(*(w.float() for w in weights[:8])), time, 0.3)
    h = torch.randn(16, 200, 32)
    dy, base = (tensor.float() for tensor in inputs)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            out, dh = torch.empty_like(base), torch.empty_like(h)
            convolution.forward(h, base, out)
            found.append([out, dh, *convolution.backward(h, dy, dh)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_extension
def test_memory_that_is_not_zero(monkeypatch):
    """Every element of what is allocated inside is written."""
    empty_like, new_empty = torch.empty_like, Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan")))
    for reading in READINGS:
        for joint in (False, True):
            inputs, weights, time = problem(reading, 3, joint)
            for tensor in results(torch.float32, "native", inputs, weights, time):
                assert tensor.isfinite().all()


@needs_extension
@pytest.mark.parametrize("reading", READINGS)
def test_operator(reading):
    inputs, weights, time = problem(reading, 2, False, dim=12, width=4)
    x, base = (tensor.float() for tensor in inputs)
    options = (0 if time is None else 2, False, weights.after_up, 0.5, "native")
    arguments = (x, base, [w.float() for w in weights if torch.is_tensor(w)], *options)
    needs = ([True, False, True], [False, False, True], [True, False, False])
    assert_operator_is_sound("msta_adapter", arguments, needs)


@needs_extension
def test_compiled_equals_eager_without_a_graph_break():
    inputs, weights, time = problem("grouped", 2, True, dim=12, width=4)
    leaves = [t.float().requires_grad_() for t in (*inputs, *weights[:8])]

    def run(x, base, *tensors):
        return kernels.msta_adapter(x, base, MSTAWeights(*tensors), time)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    slope = torch.randn(leaves[0].shape)
    for way in (run, compiled):
        y = way(*leaves)
        found = [y, *torch.autograd.grad(y, leaves, slope)]
        if way is run:
            eager = found
    assert all(torch.equal(a, b) for a, b in zip(eager, found, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        y = run(*leaves)
    assert y.dtype == torch.float32 and (y - eager[0]).abs().max() < 0.05


def autocast_results(dtype: torch.dtype, backend: str, inputs: list[Tensor], weights: MSTAWeights, time):
    """Output and gradients of fp32 leaves, computed in dtype."""
    leaves = [tensor.float().requires_grad_() for tensor in (*inputs, *(w for w in weights if torch.is_tensor(w)))]
    x, base, *rest = leaves
    with torch.autocast("cpu", dtype):
        packed = MSTAWeights(*rest, after_up=weights.after_up)
        y = kernels.msta_adapter(x, base, packed, time, scale=0.3, backend=backend)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).float()
    return [y.detach(), *torch.autograd.grad(y, leaves, slope)]


@needs_extension
@pytest.mark.parametrize("joint", [False, True], ids=["per frame", "joint"])
@pytest.mark.parametrize("reading", READINGS)
def test_under_autocast_the_stream_keeps_its_precision(reading, joint):
    (x, base), weights, time = problem(reading, 3, joint, clips=3)
    inputs = [x.bfloat16().double(), base * 1000]  # in bf16 a thousand is off by two
    weights = MSTAWeights(*(w.bfloat16().double() if torch.is_tensor(w) else w for w in weights))
    truth = results(torch.float64, "reference", inputs, weights, time)
    eager = autocast_results(torch.bfloat16, "reference", inputs, weights, time)
    ours = autocast_results(torch.bfloat16, "native", inputs, weights, time)
    assert all(tensor.dtype == torch.float32 for tensor in ours)
    assert_as_exact(truth, eager, ours)
    assert torch.equal(ours[2], eager[2])  # the gradient of the stream


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": torch.zeros(2, 3, 4)}, "x and base must both be"),
        ({"down_bias": torch.zeros(3)}, r"down_bias must have shape \(16,\), got \(3,\)"),
        ({"conv_weight": torch.zeros(48, 5, 3)}, "groups of 5 channels, into which 16 do not fall"),
        ({"conv_bias": None}, "come together"),
        ({"time": TimeLayout(3)}, "is not a multiple of num_frames"),
        ({"time": TimeLayout(3, joint=True)}, "5 tokens are no class token and patches of 3 frames"),
        ({"time": TimeLayout(0)}, "num_frames must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(change, words):
    (x, base), weights, time = problem("grouped", 2, False)
    arguments = {
        "base": base,
        "time": time,
        **{name: value for name, value in change.items() if name in ("base", "time")},
    }
    weights = weights._replace(**{name: value for name, value in change.items() if name not in arguments})
    with pytest.raises(ValueError, match=words):
        kernels.msta_adapter(x, weights=weights, **arguments)
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        kernels.msta_adapter(x.long(), base, weights, time)
