"""Every number that an operation or an adapter takes is refused in one line where it is none or out of range."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import m2clip
from m2clip import adapters, kernels
from m2clip.kernels import BranchWeights, MSTAWeights, TEDWeights, TimeLayout
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops.checks import check_count
from m2clip.matching import TRX

BACKENDS = ["reference", *(["native"] if native.extension is not None else [])]
NO_COUNTS = (-4, 0, 2**40, 2.0, "2", True, None, [2], torch.tensor(2.0), float("nan"))
NO_FLAGS = (-1, 2, 0, "no", None)
NO_NUMBERS = ("1", None, True, torch.tensor(1.0), 1j, float("inf"), float("nan"), 1e39, 2**128, -(10**400))


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def branch(dim: int, width: int, *taps: int) -> BranchWeights:
    shapes = ((width, dim), (width,), (width, 1, *taps), (width,), (dim, width), (dim,))
    return BranchWeights(*(values(*shape) for shape in shapes))


def ted(backend: str, width: int = 8, tokens: int = 17, **options: Any) -> Tensor:
    weights = TEDWeights(branch(24, width, 3), branch(24, width, 3, 3), options.pop("shared", False))
    options = {"num_frames": 3, "grid": (4, 4), **options}
    return kernels.ted_adapter(values(6, tokens, 24), weights, backend=backend, **options)


def msta(
    backend: str,
    width: int = 8,
    num_frames: Any = 3,
    joint: Any = False,
    scale: Any = 0.1,
    time: Any = None,
    **fields: Any,
) -> Tensor:
    shapes = ((width, 24), (width,), (width, width), (width,), (24, width), (24,), (24, 1, 3), (24,))
    weights = MSTAWeights(*(values(*shape) for shape in shapes))._replace(**fields)
    time = TimeLayout(num_frames, joint) if time is None else time
    return kernels.msta_adapter(values(6, 5, 24), values(6, 5, 24), weights, time, scale=scale, backend=backend)


def bottleneck(backend: str, width: int = 8, x: Any = None, **options: Any) -> Tensor:
    weights = (values(width, 24), values(width), values(24, width), values(24))
    return kernels.bottleneck_adapter(values(6, 24) if x is None else x, *weights, backend=backend, **options)


def soft_target(backend: str, **options: Any) -> Tensor:
    labels = options.pop("labels", torch.arange(4))
    return kernels.soft_target_kl(values(4, 8), values(4, 8), labels, torch.tensor(2.0), backend=backend, **options)


def words(backend: str, **options: Any) -> Tensor:
    arguments = {"hidden": values(3, 8), "weight": values(5, 8), "bias": values(5), "targets": torch.arange(3)}
    return kernels.masked_word_loss(**{**arguments, **options})


# Operation, argument and what it must not be.
REFUSED: list[tuple[Callable[..., Any], str, tuple[Any, ...]]] = [
    (ted, "num_frames", (*NO_COUNTS, 4)),
    (
        ted,
        "grid",
        ((-4, -4), (4,), (4, 4, 1), (), "44", 16, (4.0, 4), ("4", "4"), (True, 16), (2, 8.0), (3, 5), (0, 2**70)),
    ),
    (ted, "class_token", NO_FLAGS),
    (ted, "num_prefix_tokens", (-1, 18, 2**40, 2.0, "2", True, [2], torch.tensor(2.0))),
    (ted, "patches_only", NO_FLAGS),
    (ted, "sequential", NO_FLAGS),
    (ted, "shared", NO_FLAGS),
    (ted, "width", (0,)),
    (ted, "tokens", (0, 1, 16)),
    (msta, "num_frames", (*NO_COUNTS, 4)),
    (msta, "joint", NO_FLAGS),
    (msta, "after_up", NO_FLAGS),
    (msta, "scale", NO_NUMBERS),
    (msta, "width", (0, 7)),
    (msta, "conv_weight", (values(24, 0, 3), values(24, 1, 2), values(24), None)),
    (msta, "up_weight", (None, values(), values(24, 8).long())),
    (bottleneck, "width", (0,)),
    (bottleneck, "scale", NO_NUMBERS),
    (bottleneck, "residual", NO_FLAGS),
    (bottleneck, "activation", ("tanh", None, 1)),
    (bottleneck, "x", (values(), values(6, 0), values(6, 23), values(6, 24).long(), [1.0])),
    (soft_target, "target_scale", NO_NUMBERS),
    (soft_target, "labels", ([0, 1, 2, 3], torch.arange(3), torch.arange(4).int(), torch.arange(4)[:, None])),
    (words, "divisor", ("1", True, 1j, 0, float("nan"), 2**128, torch.tensor([2.0, 2.0]))),
    (words, "targets", ([0, 1, 2], torch.tensor(0), torch.arange(3) + 5, torch.arange(3) - 1, torch.arange(3.0))),
    (words, "hidden", (values(), values(3, 0), None)),
    (words, "weight", (values(), values(5), None)),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("call", "name", "bad"), REFUSED, ids=lambda part: getattr(part, "__name__", None))
def test_operations_refuse_what_they_cannot_take(call: Any, name: str, bad: tuple[Any, ...], backend: str) -> None:
    call(backend)
    for value in bad:
        with pytest.raises((ValueError, TypeError)) as caught:
            call(backend, **{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 20, (value, caught.value)


@pytest.mark.parametrize("bad", [3, None, (values(8, 24),), "weights"])
def test_weights_and_layouts_of_another_kind(bad: Any) -> None:
    x, weights = values(6, 5, 24), TEDWeights(branch(24, 8, 3), None)
    for call in (
        lambda: kernels.ted_adapter(x, bad, 3),
        lambda: kernels.ted_adapter(x, weights._replace(temporal=bad or 3), 3),
        lambda: kernels.msta_adapter(x, x, bad),
        lambda: msta("reference", time=bad or 3),
        lambda: adapters.MSTAAdapter(24, bad),
        lambda: kernels.explain("ted_adapter", bad),
    ):
        with pytest.raises(TypeError, match="must be a "):
            call()


def test_fractions_are_numbers() -> None:
    for call in (bottleneck, msta):
        assert torch.equal(call(BACKENDS[-1], scale=Fraction(1, 2)), call(BACKENDS[-1], scale=0.5))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (partial(m2clip.TEDAdapter, 24, 8), ("temporal", "difference", "shared_projection", "sequential")),
        (partial(adapters.TextAdapter, 24, 8), ("zero_init_up",)),
        (partial(adapters.MSTAAdapter, 24, nn.Linear(8, 8)), ("prenorm", "rescale_gradient")),
        (adapters.BlockLayout, ("multimodal", "text", "temporal", "joint", "temporal_skip", "write_back")),
    ],
)
def test_adapters_take_no_text_for_a_switch(make: Any, names: tuple[str, ...]) -> None:
    for name in names:
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 'False'"):
            make(**{name: "False"})


def shared(width: int = 8) -> nn.Linear:
    return nn.Linear(width, width)


def at_call(adapter: nn.Module, *shape: int) -> Callable[..., Any]:
    return lambda **options: adapter(torch.randn(*shape), **options)


SIZES = [
    *((partial(make, 24, 8), name) for make in (m2clip.TEDAdapter, adapters.STAdapter) for name in ("num_frames",)),
    *((partial(adapters.TextAdapter, dim=24, width=8), name) for name in ("dim", "width")),
    *((partial(adapters.BottleneckAdapter, dim=24, width=8), name) for name in ("dim", "width")),
    *((partial(m2clip.TEDAdapter, dim=24, width=8), name) for name in ("dim", "width", "num_frames")),
    *((partial(adapters.STAdapter, dim=24, width=8), name) for name in ("dim", "width")),
    *((partial(adapters.FrameFeatureAdapter, dim=24, width=8), name) for name in ("dim", "width")),
    *((partial(adapters.AIMAdapters, dim=24, width=8), name) for name in ("dim", "width", "num_t_adapters")),
    (partial(adapters.MSTAAdapter, dim=24, shared=shared()), "dim"),
    *((partial(TRX, dim=24, width=8), name) for name in ("dim", "width", "num_frames")),
    (adapters.BlockLayout, "temporal_adapters"),
    (at_call(m2clip.TEDAdapter(24, 8), 8, 5, 24), "num_frames"),
    (at_call(adapters.STAdapter(24, 8), 8, 5, 24), "num_frames"),
    (at_call(adapters.STAdapter(24, 8), 8, 1, 24), "num_frames"),
    (partial(kernels.explain, "ted_adapter", torch.randn(2, 5, 8)), "width"),
    (kernels.patch_grid, "num_patches"),
]
ZERO_IS_FINE = ("explain", "patch_grid")
NONE_IS_FINE = ("FrameFeatureAdapter", "<lambda>")  # the default


@pytest.mark.parametrize(("make", "name"), SIZES)
def test_adapters_refuse_sizes_that_are_none(make: Any, name: str) -> None:
    called = getattr(make, "func", make).__name__
    for value in NO_COUNTS:
        if (value == 0 and called in ZERO_IS_FINE) or (value is None and called in NONE_IS_FINE and name != "dim"):
            continue
        with pytest.raises((ValueError, TypeError), match="must be"):
            make(**{name: value})


def test_adapters_refuse_grids_and_rates_that_are_none() -> None:
    for make in (m2clip.TEDAdapter, adapters.STAdapter):
        for grid in ((-4, -4), (4,), "44", (4.0, 4)):
            with pytest.raises((ValueError, TypeError), match="grid"):
                make(24, 8, grid=grid)
        with pytest.raises(TypeError, match="class_token must be True or False, got 1"):
            make(24, 8, class_token=1)
    with pytest.raises(TypeError, match="rate must be a number, got '0.1'"):
        adapters.AIMAdapters(24, 8, drop_path="0.1")
    drop = adapters.AIMAdapters(24, 8, drop_path=0.1).train().drop_path
    with pytest.raises(ValueError, match=r"the first dimension \(5\) is not a multiple of num_frames \(2\)"):
        drop(torch.randn(5, 3, 24), 2)
    with pytest.raises(ValueError, match="num_t_adapters must be 1 or 2, got 3"):
        adapters.AIMAdapters(24, 8, num_t_adapters=3)
    with pytest.raises(ValueError, match=r"features must be \(B, T, D\), got shape \(4, 24\)"):
        adapters.FrameFeatureAdapter(24)(torch.randn(4, 24))


class Three:
    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "three", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), Three()], ids=lambda value: type(value).__name__
)
def test_what_python_takes_for_an_index_is_a_size(three: Any) -> None:
    assert type(check_count("n", three)) is int and check_count("n", three) == 3
    assert torch.equal(ted(BACKENDS[-1], num_frames=three), ted(BACKENDS[-1], num_frames=3))
    assert adapters.BottleneckAdapter(24, three).down.weight.shape == (3, 24)


@pytest.mark.parametrize(
    "bad", [np.bool_(True), np.float64(3), np.array([3, 3]), torch.tensor(True), torch.tensor(3.0)]
)
def test_truth_values_and_fractions_are_no_sizes(bad: Any) -> None:
    with pytest.raises(TypeError, match="^n must be an integer, got "):
        check_count("n", bad)


def test_integers_of_numpy_are_taken_and_become_plain_ones() -> None:
    plain, theirs = (ted(BACKENDS[-1], num_frames=as_int(3), grid=(as_int(4), as_int(4))) for as_int in (int, np.int64))
    assert torch.equal(plain, theirs)
    assert torch.equal(msta(BACKENDS[-1], num_frames=np.int32(3)), msta(BACKENDS[-1]))


def called(op: str, *arguments: Any) -> None:
    """Straight from the dispatcher, as an exported program does it."""
    output, saved = getattr(torch.ops.m2clip, op)(*arguments, "native", True)
    needs = [True] * (4 if op in ("cosine_cross_entropy", "soft_target_kl") else 3 if op == "msta_adapter" else 2)
    getattr(torch.ops.m2clip, f"{op}_backward")(torch.ones_like(output), *arguments, "native", saved, needs)


TED_WEIGHTS = [*branch(24, 8, 3), *branch(24, 8, 3, 3)]
MSTA_SHAPES = ((8, 24), (8,), (8, 8), (8,), (24, 8), (24,), (24, 1, 3), (24,))
BOTTLENECK = [values(8, 24), values(8), values(24, 8), values(24)]


@pytest.mark.skipif(native.extension is None, reason="no compiled extension")
@pytest.mark.parametrize(
    ("op", "arguments", "changes"),
    [
        (
            "ted_adapter",
            (values(6, 17, 24), TED_WEIGHTS, 6, 3, [4, 4], True, False, True),
            {0: (values(6, 17, 16), values(17, 24)), 2: (-1, 7), 3: (0, -3, 4), 4: ([-4, -4], [5, 5], [16])},
        ),
        (
            "msta_adapter",
            (values(6, 5, 24), values(6, 5, 24), [values(*shape) for shape in MSTA_SHAPES], 3, False, False, 0.1),
            {0: (values(6, 4, 24),), 2: (BOTTLENECK,), 3: (-3, 4, 0)},
        ),
        (
            "bottleneck_adapter",
            (values(6, 24), BOTTLENECK, "gelu", 1.0, True),
            {0: (values(6, 16),), 1: ([*BOTTLENECK[:3], values(8)],)},
        ),
        (
            "cosine_cross_entropy",
            (values(4, 8), values(5, 8), torch.arange(4), torch.tensor(2.0)),
            {1: (values(5, 7),), 2: (torch.arange(2), torch.arange(4).int()), 3: (torch.ones(2),)},
        ),
        (
            "soft_target_kl",
            (values(4, 8), values(4, 8), torch.arange(4), torch.tensor(2.0), 10.0),
            {1: (values(5, 8),), 2: (torch.arange(5),)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators_refuse_what_would_leave_their_memory(op: str, arguments: tuple, changes: dict) -> None:
    called(op, *arguments)
    for place, others in changes.items():
        for other in others:
            with pytest.raises((ValueError, TypeError)) as caught:
                called(op, *arguments[:place], other, *arguments[place + 1 :])
            assert str(caught.value).count("\n") == 0


def test_losses_of_tensors_without_values() -> None:
    v, scale = values(4, 8).to("meta").requires_grad_(), torch.tensor(2.0, device="meta")
    labels = torch.arange(4, device="meta")
    for loss in (
        kernels.cosine_cross_entropy(v, v, labels, scale),
        kernels.soft_target_kl(v, v, labels, scale),
        kernels.masked_word_loss(v, values(5, 8).to("meta"), values(5).to("meta"), labels),
    ):
        (gradient,) = torch.autograd.grad(loss, v)
        assert loss.shape == () and gradient.shape == v.shape and loss.is_meta and gradient.is_meta
