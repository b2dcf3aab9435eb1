"""The contrastive losses on the native backend: errors against fp64, odd shapes and layouts, the same bits always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from m2clip import kernels
from m2clip.kernels.exactness import ENOUGH, GRADIENT_FACTOR, OUTPUT_FACTOR, USUAL_FACTOR
from m2clip.kernels.native import extension as native
from m2clip.kernels.native import losses as native_losses

needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension")
ROUNDINGS = 4 * torch.finfo(torch.float32).eps
SCALE = 30.0

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LOSSES = ("cosine_cross_entropy", "soft_target_kl")


def loss_on(name: str, backend: str) -> Loss:
    return lambda v, w, labels, scale: getattr(kernels, name)(v, w, labels, scale, backend=backend)


def features(rows: int, columns: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v (B, D) and w (C, D) of different lengths, labels and the logit scale."""
    generator = torch.Generator().manual_seed(seed)
    v, w = (
        torch.randn(size, dim, generator=generator) * (0.1 + 4 * torch.rand(size, 1, generator=generator))
        for size in (rows, columns)
    )
    return v, w, torch.randint(0, columns, (rows,), generator=generator), torch.tensor(SCALE)


def is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def in_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() if is_float(tensor) else tensor for tensor in inputs)


def loss_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """0.7 times the loss, and its gradients to all floating-point inputs, in double precision."""
    leaves = [tensor.detach().requires_grad_(is_float(tensor)) for tensor in inputs]
    value = 0.7 * loss(*leaves)
    value.backward()
    found = [value.detach().double()]
    for leaf in filter(is_float, leaves):
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape
        found.append(leaf.grad.double())
    return found


def possible_size(tensor: Tensor, scale: float) -> float:
    """How large a feature's, or the scale's, gradient can be: (softmax - target) has the rounding errors of 1."""
    if tensor.dim() == 0:
        return 1.0
    return (scale / tensor.double().norm(dim=1)).norm().item() / max(1, len(tensor))


def assert_as_accurate(
    ours: Callable[..., Tensor], eager: Callable[..., Tensor], samples: list[tuple], twice: bool = False
) -> None:
    """The worst error over some samples against the worst of the eager reference in the same dtype.

    Errors are those of whole tensors; one of many values has no luck that would excuse a gradient.

    twice: whether the backward pass computes the logits again, whose sums are then in another order than those in the
    softmax's denominator: a probability is off by a rounding of a logit, which may be as large as the scale.
    """
    rows = []
    for inputs in samples:
        truth = loss_and_gradients(eager, *in_double(inputs))
        errors = [
            [(a - b).norm().item() for a, b in zip(loss_and_gradients(loss, *inputs), truth, strict=True)]
            for loss in (ours, eager)
        ]
        scale = abs(inputs[-1].item())
        possible = [scale / 10, *(possible_size(tensor, scale) for tensor in inputs if is_float(tensor))]
        roundings = [ROUNDINGS * (b.norm().item() + size) for b, size in zip(truth, possible, strict=True)]
        if twice:
            unit = torch.finfo(torch.float32).eps / 2 * scale
            roundings[1:] = [rounding + unit * size for rounding, size in zip(roundings, possible, strict=True)][1:]
        rows.append([*errors, roundings])
    for index, tensor in enumerate(truth):
        factor = OUTPUT_FACTOR if index == 0 else GRADIENT_FACTOR if tensor.numel() < ENOUGH else USUAL_FACTOR
        found, expected, rounding = (max(row[kind][index] for row in rows) for kind in range(3))
        assert found <= factor * expected + rounding, f"{index}: off by {found:.2e}, the reference by {expected:.2e}"


@needs_native
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("columns", [1, 5, 400])
@pytest.mark.parametrize("dim", [7, 64])
def test_cross_entropy_is_as_accurate_as_the_reference(rows, columns, dim):
    samples = [features(rows, columns, dim, seed) for seed in range(3)]
    assert_as_accurate(*(loss_on("cosine_cross_entropy", name) for name in ("native", "reference")), samples)


@needs_native
@pytest.mark.parametrize("rows", [1, 3, 64, 150])
@pytest.mark.parametrize("dim", [7, 64])
def test_soft_targets_are_as_accurate_as_the_reference(rows, dim):
    samples = [features(rows, rows, dim, seed) for seed in range(3)]
    assert_as_accurate(*(loss_on("soft_target_kl", name) for name in ("native", "reference")), samples)


@needs_native
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dim", [7, 24, 64, 512])
def test_logits_far_above_their_differences_cost_no_digits(name, dim):
    """At a scale of 100 a row's log-sum-exp is a large number: rounded, it makes all shares of the row wrong alike."""
    errors = []
    for seed in range(4):
        v, w, labels, _ = features(64, 64, dim, seed)
        inputs = v, w, labels, torch.tensor(100.0)
        exact = loss_and_gradients(loss_on(name, "reference"), *in_double(inputs))[1:3]
        found = (loss_and_gradients(loss_on(name, backend), *inputs)[1:3] for backend in ("native", "reference"))
        errors.append([[(a - b).square().mean() for a, b in zip(each, exact, strict=True)] for each in found])
    ours, eager = torch.tensor(errors).sum(dim=0).sqrt()
    assert (ours <= USUAL_FACTOR * eager).all(), (ours / eager).tolist()


@needs_native
@pytest.mark.parametrize("target_scale", [0.0, 1.0, 100.0, 1000.0])
def test_soft_targets_of_any_sharpness(target_scale):
    v, w, labels, scale = features(9, 9, 5)
    found = kernels.soft_target_kl(v, w, labels % 3, scale, target_scale=target_scale, backend="native")
    exact = kernels.soft_target_kl(*in_double((v, w, labels % 3, scale)), target_scale=target_scale)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@contextmanager
def on_instruction_set(name: str) -> Iterator[None]:
    before = native.extension.instruction_set()
    if not native.extension.select_instruction_set(name):
        pytest.skip(f"this processor has no {name}")
    try:
        yield
    finally:
        native.extension.select_instruction_set(before)


@needs_native
@pytest.mark.parametrize("instructions", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_instruction_set_is_accurate(name, instructions):
    with on_instruction_set(instructions):
        assert_as_accurate(
            loss_on(name, "native"), loss_on(name, "reference"), [features(37, 37, 33, s) for s in range(3)]
        )


@needs_native
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features(name, dtype):
    samples = []
    for seed in range(3):
        v, w, labels, scale = features(12, 12, 33, seed)
        samples.append((v.to(dtype), w.to(dtype), labels, scale))
    assert_as_accurate(loss_on(name, "native"), loss_on(name, "reference"), samples)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_leaves_the_loss_in_full_precision(name, backend):
    inputs = features(12, 12, 33)
    expected = loss_and_gradients(loss_on(name, backend), *inputs)

    def under_autocast(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_on(name, backend)(*tensors)

    for found, exact in zip(loss_and_gradients(under_autocast, *inputs), expected, strict=True):
        assert torch.equal(found, exact)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    rows, dim = tensor.shape
    wide, spread = tensor.new_full((rows, dim + 3), torch.nan), tensor.new_full((rows, 2 * dim), torch.nan)
    wide[:, :dim], spread[:, ::2] = tensor, tensor
    transposed = tensor.t().contiguous().t()
    return {"padded rows": wide[:, :dim], "every other": spread[:, ::2], "transposed": transposed}


@needs_native
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["padded rows", "every other", "transposed"])
def test_strided_features(name, layout):
    v, w, labels, scale = features(6, 6, 17)
    spread = labels.new_empty(6, 2)
    spread[:, 0], spread[:, 1] = labels, -1
    strided = (layouts(v)[layout], layouts(w)[layout], spread[:, 0], scale)
    pairs = zip(
        loss_and_gradients(loss_on(name, "native"), *strided),
        loss_and_gradients(loss_on(name, "native"), v, w, labels, scale),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_have_the_strides_of_the_features(name):
    v, w, labels, scale = features(6, 6, 8)
    leaves = [nn.Parameter(v), nn.Parameter(w.t().contiguous().t())]
    loss_on(name, "native")(*leaves, labels, scale).backward()
    assert [leaf.grad.stride() for leaf in leaves] == [leaf.stride() for leaf in leaves]


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_features_of_length_zero_have_the_gradients_of_the_reference(name):
    v, w, labels, scale = features(4, 4, 5)
    v[1], w[2] = 0, 0
    ours, expected = (
        loss_and_gradients(loss_on(name, backend), v, w, labels, scale) for backend in ("native", "reference")
    )
    for found, exact in zip(ours, expected, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_a_large_scale_overflows_nothing(name):
    v, w, labels, _ = features(8, 8, 16)
    for scale in (100.0, 1e4):
        for value in loss_and_gradients(loss_on(name, "native"), v, w, labels, torch.tensor(scale)):
            assert value.isfinite().all()


@needs_native
def test_many_classes():
    samples = [features(5, 50_000, 8, seed) for seed in range(3)]
    assert_as_accurate(*(loss_on("cosine_cross_entropy", name) for name in ("native", "reference")), samples)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_costs_nothing(name, backend):
    v, w, _, scale = features(2, 3, 5)
    v, w, labels = v[:0], w if name == "cosine_cross_entropy" else w[:0], torch.zeros(0, dtype=torch.int64)
    for value in loss_and_gradients(loss_on(name, backend), v, w, labels, scale):
        assert not value.any()


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_computed_for_what_needs_them(name):
    v, w, labels, scale = features(6, 6, 8)
    complete = loss_and_gradients(loss_on(name, "native"), v, w, labels, scale)
    for index, tensor in enumerate((v, w, scale)):
        leaf = tensor.detach().requires_grad_()
        inputs = [leaf if other is tensor else other for other in (v, w, scale)]
        (0.7 * loss_on(name, "native")(*inputs[:2], labels, inputs[2])).backward()
        assert torch.equal(leaf.grad.double(), complete[1 + index])


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_the_passes_give_the_same_bits_for_any_number_of_threads(name):
    """Of the passes alone: how torch splits its matrix products over threads is its own affair."""
    v, w, labels, scale = features(150, 150, 64)
    found = native_losses.cosines(v, w)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4, 2, 1):
            torch.set_num_threads(number)
            lengths = native_losses.Cosines(found.dots, *native_losses.cosines(v, w)[1:])
            if name == "cosine_cross_entropy":
                loss, *sums = native_losses.cross_entropy(lengths, labels, scale)
                slopes = native_losses.cross_entropy_slopes(torch.ones(()), lengths, labels, scale, *sums)
            else:
                loss, *sums = native_losses.soft_target(lengths, labels, scale, 10.0)
                slopes = native_losses.soft_target_slopes(torch.ones(()), lengths, labels, scale, tuple(sums), 10.0)
            results.append([loss, *lengths, *sums, *slopes])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@needs_native
@pytest.mark.parametrize("name", LOSSES)
def test_every_run_writes_the_same_bits_everywhere(name):
    inputs = features(70, 70, 33)
    first = loss_and_gradients(loss_on(name, "native"), *inputs)
    with uninitialised_memory_is_nan():
        for _ in range(4):
            again = loss_and_gradients(loss_on(name, "native"), *inputs)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("target", [-100, -1, 5])
def test_a_target_that_is_no_class_is_told(backend, target):
    v, w, targets, scale = features(4, 5, 3)
    targets[2] = target
    with pytest.raises(ValueError, match=rf"targets must lie in \[0, 5\), got {target}$"):
        kernels.cosine_cross_entropy(v, w, targets, scale, backend=backend)


def test_a_loss_on_two_devices_is_told():
    v, w, targets, scale = features(4, 5, 3)
    for args, name in (
        ((v, w.to("meta"), targets, scale), "w"),
        ((v, w, targets.to("meta"), scale), "targets"),
        ((v, w, targets, scale.to("meta")), "logit_scale"),
    ):
        with pytest.raises(ValueError, match=f"^{name} is on meta and the other tensors are on cpu"):
            kernels.cosine_cross_entropy(*args)


def test_function_transforms_take_the_reference():
    v, w, labels, scale = in_double(features(4, 4, 3))
    for name in LOSSES:
        found = torch.func.grad(lambda x, name=name: loss_on(name, "auto")(x, w, labels, scale))(v)
        torch.testing.assert_close(0.7 * found, loss_and_gradients(loss_on(name, "reference"), v, w, labels, scale)[1])
    found = torch.func.grad(lambda x: loss_on("cosine_cross_entropy", "auto")(x, w.float(), labels, scale))(v.float())
    assert found.isfinite().all()
