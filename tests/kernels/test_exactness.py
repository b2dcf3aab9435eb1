"""The rule by which kernels count as right: what it must see, and what it must not take for wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m2clip.kernels.exactness import ENOUGH, judge


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(a: Tensor, b: Tensor, block: int, sums: torch.dtype) -> Tensor:
    """a @ b, added up by blocks of the depth in a dtype."""
    total = a.new_zeros(a.shape[0], b.shape[1], dtype=sums)
    for first in range(0, a.shape[1], block):
        total = (total + a[:, first : first + block].to(sums) @ b[first : first + block].to(sums)).to(sums)
    return total.to(a.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", [False, True])
def test_sums_in_half_precision_are_wrong(dtype: torch.dtype, gradient: bool) -> None:
    a, b = drawn(64, 256).to(dtype), drawn(256, 64, seed=1).to(dtype)
    exact, eager = a.double() @ b.double(), (a.float() @ b.float()).to(dtype)
    assert judge(product(a, b, 32, torch.float32), eager, exact, gradient).passed
    verdict = judge(product(a, b, 32, dtype), eager, exact, gradient)
    assert not verdict.passed and (verdict.kind == "usual" or not gradient)


@pytest.mark.parametrize("depth", [64, 1024, 16384])
def test_fp32_sums_in_any_order_are_right(depth: int) -> None:
    a, b = drawn(40, depth).float(), drawn(depth, 32, seed=1).float()
    exact, terms = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    blocked = torch.stack([x @ y for x, y in zip(a.split(16, dim=1), b.split(16), strict=True)]).double().sum(0).float()
    one_by_one = product(a, b, 1, torch.float32)
    assert (one_by_one - exact).norm() > 2 * (blocked - exact).norm() or depth == 64
    assert judge(one_by_one, blocked, exact, False, terms).passed
    # As with tf32, whose factors have 11 bits.
    tf32 = (a.view(torch.int32) & -0x2000).view(torch.float32) @ b
    assert not judge(tf32, blocked, exact, False, terms).passed


def test_a_factor_of_what_is_allowed() -> None:
    exact = drawn(10)
    eager = exact + 1e-3
    for gradient, factor in ((False, 2), (True, 3)):
        assert judge(exact + 0.99e-3 * factor, eager, exact, gradient).passed
        assert not judge(exact + 1.01e-3 * factor, eager, exact, gradient).passed


def test_few_values_are_judged_by_their_largest_error_alone() -> None:
    for size, passed in ((ENOUGH - 1, True), (ENOUGH, False)):
        exact = drawn(size)
        assert judge(exact + 1.6e-3, exact + 1e-3, exact, False).passed == passed


def test_a_few_values_may_be_off_like_the_worst_of_the_eager_ones() -> None:
    """Those of a ReLU that a rounding has opened."""
    exact, eager, found = drawn(2 * ENOUGH), drawn(2 * ENOUGH, seed=1) * 1e-3, drawn(2 * ENOUGH, seed=2) * 1e-3
    eager[:10] += 1
    found[-150:] += 1
    assert judge(exact + found, exact + eager, exact, True).passed
    found[-400:] += 1
    assert not judge(exact + found, exact + eager, exact, True).passed


def test_a_single_number_may_be_off_by_four_units() -> None:
    exact, unit = torch.tensor(1.0, dtype=torch.float64), torch.finfo(torch.float32).eps
    assert judge((exact + 4 * unit).float(), exact.float(), exact, False).passed
    assert not judge((exact + 10 * unit).float(), exact.float(), exact, False).passed


def test_what_is_no_number_is_wrong_however_little_is_there() -> None:
    for size in (1, ENOUGH):
        exact = drawn(size)
        found = exact.clone()
        found[-1] = math.nan
        assert not judge(found, exact + 1, exact, True).passed
    assert judge(drawn(0), drawn(0), drawn(0), False).passed


def test_an_error_where_the_truth_is_zero() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert judge(zero.float(), zero.float(), zero, False).passed
    assert judge(zero.float() + 1e-3, zero.float(), zero, False)[1:] == pytest.approx((1e-3, 0.0))
