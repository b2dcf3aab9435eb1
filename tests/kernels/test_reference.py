"""The reference kernels against restatements of the formulas, fp64 gradients, and mistakes told in one line."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from m2clip import kernels
from m2clip.adapters import TEDAdapter
from m2clip.kernels import BranchWeights, TEDWeights
from m2clip.kernels.ops.bottleneck import ACTIVATIONS

DIM, WIDTH = 6, 4


def branch(
    kernel: tuple[int, ...], dim: int = DIM, width: int = WIDTH, dtype: torch.dtype = torch.float64
) -> BranchWeights:
    shapes = ((width, dim), (width,), (width, *kernel), (width,), (dim, width), (dim,))
    return BranchWeights(*(torch.randn(shape, dtype=dtype) for shape in shapes))


def weights(temporal: bool = True, difference: bool = True, shared: bool = False) -> TEDWeights:
    te, td = branch((1, 3)), branch((1, 3, 3))
    if shared:
        td = td._replace(down_weight=te.down_weight, down_bias=te.down_bias, up_weight=te.up_weight, up_bias=te.up_bias)
    return TEDWeights(te if temporal else None, td if difference else None, shared)


def by_loops(x: torch.Tensor, w: TEDWeights, frames: int, grid: tuple[int, int], prefix: int, sequential: bool):
    """The equations token by token, with Python loops over frames and grid positions."""
    height, width = grid
    out = x.clone()
    for clip in range(x.shape[0] // frames):
        tokens = x[clip * frames : (clip + 1) * frames]
        enhanced = tokens.clone()
        if w.temporal is not None:
            te = w.temporal
            h = tokens @ te.down_weight.T + te.down_bias
            for t in range(frames):
                u = te.conv_bias.expand(tokens.shape[1], -1).clone()
                for tap, source in enumerate((t - 1, t, t + 1)):
                    if 0 <= source < frames:
                        u = u + te.conv_weight[:, 0, tap] * h[source]
                enhanced[t] = enhanced[t] + u @ te.up_weight.T + te.up_bias
        result = enhanced.clone()
        if w.difference is not None:
            td = w.difference
            source = enhanced if sequential else tokens
            for t in range(frames):
                delta = source[t, prefix:] - source[t - 1, prefix:] if t else torch.zeros_like(source[0, prefix:])
                h = (delta @ td.down_weight.T + td.down_bias).reshape(height, width, -1)
                for i, j in itertools.product(range(height), range(width)):
                    u = td.conv_bias.clone()
                    for di, dj in itertools.product((-1, 0, 1), (-1, 0, 1)):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            u = u + td.conv_weight[:, 0, di + 1, dj + 1] * h[i + di, j + dj]
                    bias = 0 if w.shared and w.temporal is not None else td.up_bias
                    result[t, prefix + i * width + j] += u @ td.up_weight.T + bias
        out[clip * frames : (clip + 1) * frames] = result
    return out


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 3)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    "layout", [(True, True, False), (True, True, True), (True, False, False), (False, True, False)], ids=str
)
def test_ted_adapter_follows_the_equations(frames, grid, prefix, layout):
    torch.manual_seed(0)
    w = weights(*layout)
    x = torch.randn(2 * frames, grid[0] * grid[1] + prefix, DIM, dtype=torch.float64)
    for sequential in (False, True):
        y = kernels.ted_adapter(x, w, frames, grid=grid, num_prefix_tokens=prefix, sequential=sequential)
        expected = by_loops(x, w, frames, grid, prefix, sequential)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layout", [(True, True, False), (True, True, True), (True, False, False), (False, True, False)], ids=str
)
@pytest.mark.parametrize("prefix", [1, 5])
def test_patches_only_leaves_prefix_tokens_untouched(prefix, layout):
    torch.manual_seed(0)
    w, x = weights(*layout), torch.randn(6, prefix + 6, DIM, dtype=torch.float64)
    for sequential in (False, True):
        options = {"grid": (2, 3), "patches_only": True, "sequential": sequential}
        y = kernels.ted_adapter(x, w, 3, num_prefix_tokens=prefix, **options)
        assert torch.equal(y[:, :prefix], x[:, :prefix])
        expected = by_loops(x[:, prefix:], w, 3, (2, 3), 0, sequential)
        torch.testing.assert_close(y[:, prefix:], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(y[:, prefix:], kernels.ted_adapter(x[:, prefix:], w, 3, class_token=False, **options))


def test_difference_adds_nothing_to_class_tokens_and_only_biases_to_first_frames():
    torch.manual_seed(0)
    w = weights(temporal=False)
    x = torch.randn(6, 10, DIM, dtype=torch.float64)
    y = kernels.ted_adapter(x, w, 3) - x
    assert torch.equal(y[:, 0], torch.zeros_like(y[:, 0]))
    other_first_frame = x.clone()
    other_first_frame[0] += 1
    again = kernels.ted_adapter(other_first_frame, w, 3) - other_first_frame
    torch.testing.assert_close(again[0], y[0], rtol=0, atol=1e-14)
    assert not torch.allclose(again[1], y[1])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_ted_adapter_gradients(shared, sequential):
    torch.manual_seed(0)
    w = weights(shared=shared)
    tensors = [tensor.requires_grad_() for tensor in (*w.temporal, *(w.difference[2:4] if shared else w.difference))]
    x = torch.randn(4, 5, DIM, dtype=torch.float64, requires_grad=True)

    def run(x, *flat):
        te = BranchWeights(*flat[:6])
        td = te._replace(conv_weight=flat[6], conv_bias=flat[7]) if shared else BranchWeights(*flat[6:])
        return kernels.ted_adapter(x, TEDWeights(te, td, shared), 2, sequential=sequential)

    assert torch.autograd.gradcheck(run, (x, *tensors))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("residual", [True, False])
def test_bottleneck_adapter_gradients_and_formula(activation, residual):
    torch.manual_seed(0)
    shapes = ((WIDTH, DIM), (WIDTH,), (DIM, WIDTH), (DIM,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, DIM), *shapes)]

    def run(*args):
        return kernels.bottleneck_adapter(*args, activation=activation, scale=0.7, residual=residual)

    assert torch.autograd.gradcheck(run, inputs)
    x, down, b, up, a = inputs
    act = {"gelu": lambda h: 0.5 * h * (1 + torch.erf(h / 2**0.5)), "relu": lambda h: h.clamp_min(0)}
    act |= {"none": lambda h: h, "quick_gelu": lambda h: h / (1 + torch.exp(-1.702 * h))}
    expected = 0.7 * (act[activation](x @ down.T + b) @ up.T + a) + (x if residual else 0)
    torch.testing.assert_close(run(*inputs), expected, rtol=1e-12, atol=1e-12)


def test_cosine_cross_entropy_gradients_and_formula():
    torch.manual_seed(0)
    v = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda *a: kernels.cosine_cross_entropy(a[0], a[1], targets, a[2]), (v, w, scale))
    probability = torch.exp(3 * F.cosine_similarity(v[:, None], w[None], dim=-1))
    probability = probability / probability.sum(dim=1, keepdim=True)
    expected = -probability[torch.arange(5), targets].log().mean()
    torch.testing.assert_close(kernels.cosine_cross_entropy(v, w, targets, scale), expected)


def test_soft_target_kl_gradients_and_formula():
    torch.manual_seed(0)
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda *a: kernels.soft_target_kl(a[0], a[1], labels, a[2]), (v, w, scale))
    logits = 5 * F.cosine_similarity(v[:, None], w[None], dim=-1)
    expected = torch.zeros((), dtype=torch.float64)
    for scores in (logits, logits.T):
        for i in range(4):
            target = torch.exp(10.0 * (labels == labels[i]).double())
            target = target / target.sum()
            expected = expected + (target * (target.log() - torch.log_softmax(scores[i], 0))).sum() / 8
    torch.testing.assert_close(kernels.soft_target_kl(v, w, labels, scale), expected)


def test_masked_word_loss_gradients_and_formula():
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, DIM, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)
    targets = torch.full((3, 4), -100)
    targets[0, 1], targets[2, 3], targets[2, 0] = 5, 0, 8

    assert torch.autograd.gradcheck(lambda *a: kernels.masked_word_loss(*a, targets), (hidden, weight, bias))
    logits = hidden @ weight.T + bias
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(kernels.masked_word_loss(hidden, weight, bias, targets), expected)
    halved = kernels.masked_word_loss(hidden, weight, bias, targets, divisor=6.0)
    torch.testing.assert_close(halved, expected / 2)


def test_masked_word_loss_without_masked_words_is_exactly_zero():
    hidden = torch.randn(2, 3, DIM, requires_grad=True)
    weight = torch.randn(5, DIM, requires_grad=True)
    loss = kernels.masked_word_loss(hidden, weight, torch.zeros(5), torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any() and not weight.grad.any()


def test_long_masked_word_lists_are_chunked_without_changing_the_loss(monkeypatch):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(20, DIM), torch.randn(7, DIM), torch.randn(7)
    targets = torch.randint(0, 7, (20,))
    whole = kernels.masked_word_loss(hidden, weight, bias, targets)
    monkeypatch.setattr("m2clip.kernels.ops.masked_words.CHUNK", 21)
    torch.testing.assert_close(kernels.masked_word_loss(hidden, weight, bias, targets), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_computed_in_fp32(dtype):
    torch.manual_seed(0)
    v, w, targets = torch.randn(4, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype), torch.tensor([0, 5, 2, 2])
    loss = kernels.cosine_cross_entropy(v, w, targets, torch.tensor(100.0))
    assert loss.dtype == torch.float32
    exact = kernels.cosine_cross_entropy(v.double(), w.double(), targets, torch.tensor(100.0).double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_empty_batches_give_empty_or_zero_results():
    adapter = TEDAdapter(DIM, WIDTH, 2)
    assert adapter(torch.zeros(0, 5, DIM)).shape == (0, 5, DIM)
    empty, w = torch.zeros(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    for loss in (
        kernels.cosine_cross_entropy(empty, w, none, torch.tensor(100.0)),
        kernels.soft_target_kl(empty, empty, none, torch.tensor(100.0)),
    ):
        loss.backward()
        assert loss.item() == 0
    assert not w.grad.any()


def test_strided_input_equals_contiguous_input():
    torch.manual_seed(0)
    w = weights()
    x = torch.randn(DIM, 10, 4, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(
        kernels.ted_adapter(x, w, 2), kernels.ted_adapter(x.contiguous(), w, 2), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda w, x: kernels.ted_adapter(x[0], w, 2), ValueError, r"x must be \(B\*T, L, D\)"),
        (lambda w, x: kernels.ted_adapter(x, w, 3), ValueError, "not a multiple of num_frames"),
        (lambda w, x: kernels.ted_adapter(x[:, :4], w, 2), ValueError, "no square grid"),
        (lambda w, x: kernels.ted_adapter(x, w, 2, grid=(3, 2)), ValueError, "3x2 does not hold 4"),
        (lambda w, x: kernels.ted_adapter(x.long(), w, 2), TypeError, "floating-point"),
        (lambda w, x: kernels.ted_adapter(x[..., :5], w, 2), ValueError, "temporal.down_weight must have shape"),
        (
            lambda w, x: kernels.ted_adapter(
                x, w._replace(difference=w.difference._replace(conv_bias=torch.empty(WIDTH, device="meta"))), 2
            ),
            ValueError,
            "difference.conv_bias is on meta and the other tensors are on cpu",
        ),
        (
            lambda w, x: kernels.ted_adapter(x, w._replace(shared=True), 2),
            ValueError,
            "shared=True, but temporal.down_weight and difference.down_weight are not the same tensor",
        ),
        (lambda w, x: kernels.ted_adapter(x, w, 2, backend="warp"), ValueError, "unknown backend 'warp'"),
        (
            lambda w, x: kernels.bottleneck_adapter(x, *w.temporal[:2], *w.temporal[4:], activation="tanh"),
            ValueError,
            "unknown activation 'tanh'",
        ),
        (
            lambda w, x: kernels.cosine_cross_entropy(x[0], x[0, :, :3], torch.zeros(5).long(), torch.tensor(1.0)),
            ValueError,
            r"v must be \(B, D\) and w \(C, D\)",
        ),
        (
            lambda w, x: kernels.cosine_cross_entropy(x[0], x[0], torch.zeros(5), torch.tensor(1.0)),
            TypeError,
            "targets must be int64",
        ),
        (
            lambda w, x: kernels.cosine_cross_entropy(x[0], x[0], torch.zeros(5).long(), torch.ones(1)),
            ValueError,
            "0-d tensor",
        ),
    ],
)
def test_mistakes_are_told(call, error, words):
    x = torch.randn(4, 5, DIM, dtype=torch.float64)
    with pytest.raises(error, match=words):
        call(weights(), x)
