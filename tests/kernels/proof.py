"""When a kernel counts as proven: its error against fp64 is that of the eager reference in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_as_exact(truth: Sequence[Tensor], eager: Sequence[Tensor], ours: Sequence[Tensor], outputs: int = 1) -> None:
    """The first `outputs` tensors at most twice, the gradients after them three times the error of the eager ones.

    One unit in the last place of the largest value is allowed on top: a single rounding can be lucky in one of them.
    """
    assert len(truth) == len(eager) == len(ours)
    for index, (exact, reference, result) in enumerate(zip(truth, eager, ours, strict=True)):
        assert result.shape == reference.shape and result.dtype == reference.dtype, index
        if exact.numel() == 0:
            continue
        factor = 2 if index < outputs else 3
        error, reference_error = ((tensor.double() - exact).abs().max().item() for tensor in (result, reference))
        allowed = factor * reference_error + torch.finfo(result.dtype).eps * exact.abs().max().item()
        assert error <= allowed, f"tensor {index}: error {error:.3g}, allowed {allowed:.3g}"
