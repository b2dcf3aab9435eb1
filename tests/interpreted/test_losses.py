"""The Triton kernels of the contrastive losses, by the interpreter, against the reference in fp64.

bf16 is left to a GPU: the interpreter's tl.dot is wrong in it.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from m2clip import kernels
from m2clip.kernels.triton import losses
from m2clip.kernels.triton.loss_backward_kernels import nearest_tf32
from tests.kernels.proof import assert_operator_is_sound
from tests.kernels.test_losses import (
    LOSSES,
    assert_as_accurate,
    is_float,
    layouts,
    loss_and_gradients,
    loss_on,
    uninitialised_memory_is_nan,
)

DTYPES = [torch.float32, torch.float16]
OPS = torch.ops.m2clip


def features(name: str, rows: int, columns: int, dim: int, scale: float, dtype: torch.dtype, seed: int = 0) -> tuple:
    """v (B, D), w (C, D) of different lengths, labels of which some are the same, and the logit scale."""
    generator = torch.Generator().manual_seed(seed)
    columns = columns if name == "cosine_cross_entropy" else rows
    v, w = (
        torch.randn(size, dim, generator=generator) * (0.1 + 4 * torch.rand(size, 1, generator=generator))
        for size in (rows, columns)
    )
    labels = torch.randint(0, max(1, columns // 2), (rows,), generator=generator)
    v[: rows // 3] += 3 * w[labels[: rows // 3]]  # as in training: some are told apart with a probability close to 1
    return v.to(dtype), w.to(dtype), labels, torch.tensor(scale)


def results(loss, *inputs: Tensor) -> list[Tensor]:
    """The loss and the gradients of v, w and the scale, in their own dtypes."""
    leaves = [tensor.detach().clone().requires_grad_(is_float(tensor)) for tensor in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad])]


def assert_exact(name: str, *samples: tuple, twice: bool = False) -> None:
    assert_as_accurate(loss_on(name, "triton"), loss_on(name, "reference"), list(samples), twice)


def signed_error(found: Tensor, true: Tensor) -> float:
    """The share of the true values by which the found ones are too large, on average; below 0 they are too small."""
    return float(((found.double() - true) * true).sum() / true.square().sum())


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many classes in small: no dot products are kept for the backward pass."""
    monkeypatch.setattr(losses, "KEPT_DOTS", 0)


@pytest.mark.parametrize("scale", [10.0, 14.3, 100.0])
@pytest.mark.parametrize(("rows", "columns", "dim"), [(1, 5, 7), (3, 33, 16), (5, 1, 33), (64, 70, 40)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_triton_is_as_exact_as_eager(name, dtype, rows, columns, dim, scale):
    seeds = range(3 if rows < 64 else 1)  # the worst of several: a single number's rounding can be lucky
    assert_exact(name, *(features(name, rows, columns, dim, scale, dtype, seed) for seed in seeds))


@pytest.mark.parametrize(("rows", "columns", "dim"), [(3, 7, 5), (20, 40, 100)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_without_kept_dot_products(name, dtype, rows, columns, dim, nothing_kept):
    samples = (features(name, rows, columns, dim, 100.0, dtype, seed) for seed in range(2 if rows == 3 else 1))
    assert_exact(name, *samples, twice=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes(dtype, nothing_kept):
    """The tiles for many columns, several of them in a program, and gradients whose sum is split."""
    columns = 40 * losses.gradient_config(16, losses.MANY + 1, dtype).other
    assert columns > losses.MANY
    assert_exact("cosine_cross_entropy", features("cosine_cross_entropy", 2, columns, 9, 14.3, dtype), twice=True)


def test_programs_that_take_several_tiles(monkeypatch):
    monkeypatch.setattr(losses, "_PROGRAMS", 4)
    for rows, columns in ((20, 200), (70, 40)):
        inputs = features("cosine_cross_entropy", rows, columns, 9, 14.3, torch.float32)
        assert_exact("cosine_cross_entropy", inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_half_precision_are_not_biased(name):
    """Slopes that were cut to tf32 would make all gradients smaller, by a third of its unit of 2**-10."""
    v, w, labels, scale = features(name, 40, 60, 64, 14.3, torch.float16)
    found = results(loss_on(name, "triton"), v, w, labels, scale)[1:3]
    exact = results(loss_on(name, "reference"), v.double(), w.double(), labels, scale.double())[1:3]
    for gradient, true in zip(found, exact, strict=True):
        rounded = true.half()  # at best
        assert abs(signed_error(gradient, true) - signed_error(rounded, true)) < 2**-16
        assert (gradient.double() - true).norm() <= 1.1 * (rounded.double() - true).norm()


@triton.jit
def rounding_kernel(p_x, p_y, SIZE: tl.constexpr):
    o_x = tl.arange(0, SIZE)
    tl.store(p_y + o_x, nearest_tf32(tl.load(p_x + o_x)))


def test_rounding_to_the_nearest_tf32():
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0)) ** 5
    inf, nan = float("inf"), float("nan")
    x[:6] = torch.tensor([inf, -inf, nan, nan, 0.0, 1 + 2**-11])
    x.view(torch.int32)[3] = 0x7FFFFFFF  # what a GPU makes where there is no number
    y = torch.empty_like(x)
    rounding_kernel[1,](x, y, SIZE=1024)
    assert y[0] == inf and y[1] == -inf and y[2].isnan() and y[3].isnan()
    assert y[4] == 0 and y[5] == 1 + 2**-10
    mantissa, exponent = torch.frexp(x[6:].double())
    assert torch.equal(y[6:].double(), torch.ldexp((mantissa * 2**11).round(), exponent - 11))


@pytest.mark.parametrize("name", LOSSES)
def test_sums_that_are_split(name, monkeypatch):
    monkeypatch.setattr(losses, "_LEAST_TILES", 1)
    assert_exact(name, features(name, 70, 130, 9, 14.3, torch.float16))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [-10.0, 0.0, 1e4])
def test_any_scale(name, scale):
    assert_exact(name, features(name, 9, 12, 8, scale, torch.float32))


@pytest.mark.parametrize("target_scale", [-200.0, -1.0, 0.0, 1.0, 1000.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_soft_targets_of_any_sharpness(target_scale, classes):
    v, w, labels, scale = features("soft_target_kl", 9, 9, 5, 14.3, torch.float32)

    def loss_of(backend: str):
        return lambda v, w, labels, scale: kernels.soft_target_kl(
            v, w, labels, scale, target_scale=target_scale, backend=backend
        )

    assert_as_accurate(loss_of("triton"), loss_of("reference"), [(v, w, labels % classes, scale)])


@pytest.mark.parametrize("name", LOSSES)
def test_features_of_length_zero_have_the_gradients_of_the_reference(name):
    v, w, labels, scale = features(name, 4, 4, 5, 14.3, torch.float32)
    v[1], w[2] = 0, 0
    assert_exact(name, (v, w, labels, scale))


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_costs_nothing(name):
    v, w, labels, scale = features(name, 0, 3, 5, 14.3, torch.float32)
    for value in results(loss_on(name, "triton"), v, w, labels, scale):
        assert not value.any()


@pytest.mark.parametrize("target", [-100, -1, 5])
def test_a_target_that_is_no_class_gives_no_number(target):
    v, w, targets, scale = features("cosine_cross_entropy", 4, 5, 3, 14.3, torch.float32)
    targets[2] = target
    loss, dv, dw, dscale = results(loss_on("cosine_cross_entropy", "triton"), v, w, targets, scale)
    assert loss.isnan() and dscale.isnan() and dw.isnan().all() and dv[2].isnan().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["padded rows", "every other", "transposed"])
def test_strided_features(name, layout):
    v, w, labels, scale = features(name, 6, 6, 17, 14.3, torch.float32)
    spread = labels.new_empty(6, 2)
    spread[:, 0], spread[:, 1] = labels, -1
    leaves = [layouts(x)[layout].detach().requires_grad_() for x in (v, w)]
    loss = loss_on(name, "triton")(*leaves, spread[:, 0], scale)
    found = torch.autograd.grad(loss, leaves)
    for gradient, leaf, expected in zip(
        found, leaves, results(loss_on(name, "triton"), v, w, labels, scale)[1:3], strict=True
    ):
        assert torch.equal(gradient, expected) and gradient.stride() == torch.empty_like(leaf).stride()


@pytest.mark.parametrize("name", LOSSES)
def test_features_of_two_dtypes_are_computed_in_fp32(name):
    v, w, labels, scale = features(name, 6, 8, 17, 14.3, torch.float32)
    found = results(loss_on(name, "triton"), v.half(), w, labels, scale)
    expected = results(loss_on(name, "triton"), v.half().float(), w, labels, scale)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float16, torch.float32, torch.float32]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_leaves_the_loss_in_full_precision(name):
    inputs = features(name, 6, 8, 17, 100.0, torch.float32)
    expected = results(loss_on(name, "triton"), *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(loss_on(name, "triton"), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_computed_for_what_needs_them(name):
    v, w, labels, scale = features(name, 6, 8, 8, 14.3, torch.float32)
    complete = loss_and_gradients(loss_on(name, "triton"), v, w, labels, scale)
    for index, tensor in enumerate((v, w, scale)):
        leaf = tensor.detach().requires_grad_()
        inputs = [leaf if other is tensor else other for other in (v, w, scale)]
        (0.7 * loss_on(name, "triton")(*inputs[:2], labels, inputs[2])).backward()
        assert torch.equal(leaf.grad.double(), complete[1 + index])


@pytest.mark.parametrize("name", LOSSES)
def test_every_run_writes_the_same_bits_everywhere(name):
    inputs = features(name, 20, 40, 33, 14.3, torch.float32)
    first = results(loss_on(name, "triton"), *inputs)
    with uninitialised_memory_is_nan():
        again = results(loss_on(name, "triton"), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_operators_pass_opcheck(name, rows, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(losses, "KEPT_DOTS", 0)
    v, w, labels, scale = features(name, rows, 6, 7, 14.3, torch.float32)
    options = (10.0, "triton") if name == "soft_target_kl" else ("triton",)
    needs = ([True, True, False, True], [False, True, False, True], [False, False, False, True])
    assert_operator_is_sound(name, (v, w, labels, scale, *options), needs)


class BothLosses(nn.Module):
    def forward(self, v: Tensor, w: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        classified = kernels.cosine_cross_entropy(v, w, labels, scale, backend="triton")
        return classified + kernels.soft_target_kl(v, w[labels], labels, scale, backend="triton")


def test_compiled_without_a_break_the_losses_are_those_of_eager_mode():
    inputs = features("cosine_cross_entropy", 6, 9, 16, 14.3, torch.float16)
    compiled = torch.compile(BothLosses(), fullgraph=True, backend="aot_eager")
    for found, expected in zip(results(compiled, *inputs), results(BothLosses(), *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_flops_of_the_products_are_counted():
    v, w, labels, scale = features("cosine_cross_entropy", 6, 9, 16, 14.3, torch.float32)
    with FlopCounterMode(display=False) as counter:
        kernels.cosine_cross_entropy(v.requires_grad_(), w.requires_grad_(), labels, scale, backend="triton").backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * 9 * 16
