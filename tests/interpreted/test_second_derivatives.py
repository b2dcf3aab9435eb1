"""Gradients of gradients through the Triton backend are those of the reference."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_second_derivatives import CASES, penalised


@pytest.mark.parametrize("op", [op for op in CASES if op != "masked_word_loss"])
def test_the_last_operation_may_be_differentiated_twice(op: str) -> None:
    case = CASES[op][0]
    exact = penalised(case, "reference", torch.float64)
    assert (penalised(case, "triton") - exact).norm() <= 1e-5 * exact.norm()
