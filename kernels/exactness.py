"""When a kernel's result counts as right: its errors against fp64 are those of plain PyTorch in the same dtype.

Two errors are looked at. The largest one may be twice PyTorch's, in a gradient three times. The usual one may be half
as large again, where a tensor has so many values that it is no matter of luck: there a sum is seen that was rounded to
half precision on its way, while no single value is far off. The usual error is the root mean square of all but the
largest tenth, in which are values whose ReLU a rounding has opened or closed, in either of the two.

Some roundings are allowed on top, as PyTorch may be lucky in both. The largest error may have one unit in the last
place of the largest value; a single number has four, being what is left of sums that are larger than it is. Sums are
taken in fp32 and in any order. The partial sums of n terms of random sign grow with the square root of their number,
so that adding them one by one has an error of n / sqrt(6) roundings of a term as its standard deviation (Higham 2002,
4.2, of errors that are independent): less than one rounding of what the terms add up to in absolute value. The usual
error may have one such rounding, the largest of many values four.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

OUTPUT_FACTOR, GRADIENT_FACTOR, USUAL_FACTOR = 2.0, 3.0, 1.5
ENOUGH = 1000  # values, from which on the usual error is looked at
_DEVIATIONS = 4
_FEW_TERMS = 2.0  # what terms add up to in absolute value, as a multiple of their sum, where that is not known


class Verdict(NamedTuple):
    """How far a tensor is from the truth and how far it may be, by the error that is nearer to its limit."""

    kind: str  # of the error: "largest" or "usual"
    error: float  # as a share of the largest true value; of a tensor that should be 0 as it is
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # a NaN does not pass


@torch.no_grad()
def judge(found: Tensor, eager: Tensor, exact: Tensor, gradient: bool, terms: Tensor | None = None) -> Verdict:
    """Compare a result with the truth, in fp64, and with what plain PyTorch makes in the dtype of the result.

    Args:
        found: the result.
        eager: PyTorch's.
        exact: the truth.
        gradient: whether it is a gradient, or else an output.
        terms: what the terms of each value's sum add up to in absolute value; by default twice the value.
    """
    if exact.numel() == 0:
        return Verdict("largest", 0.0, 0.0)
    share = float(exact.abs().max()) or 1.0
    ours, theirs = ((tensor.double() - exact).abs() / share for tensor in (found, eager))
    roundings = (_FEW_TERMS * exact.abs() if terms is None else terms) / share * _rounding(torch.float32)
    units = (4 if exact.dim() == 0 else 1) * 2 * _rounding(found.dtype) * float(exact.abs().max()) / share
    allowed = (GRADIENT_FACTOR if gradient else OUTPUT_FACTOR) * theirs.max() + _DEVIATIONS * roundings.max() + units
    verdict = Verdict("largest", float(ours.max()), float(allowed))
    if exact.numel() < ENOUGH or not verdict.passed:
        return verdict
    usual = Verdict("usual", _usual(ours), USUAL_FACTOR * _usual(theirs) + _usual(roundings))
    return max(verdict, usual, key=_strain)


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _usual(errors: Tensor) -> float:
    most = errors.flatten().sort().values[: errors.numel() * 9 // 10]
    return float(most.square().mean().sqrt())


def _strain(verdict: Verdict) -> float:
    """The error as a part of what is allowed."""
    if not verdict.passed:
        return math.inf
    return verdict.error / verdict.bound if verdict.bound else 0.0
