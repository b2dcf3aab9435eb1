"""The activation functions of feed-forward layers, known by what they do and not by whose class they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(1.702 * x).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * x)
        return (gate + 1.702 * x * gate * (1 - gate)).mul_(gradients[0])


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), OpenAI's activation; the gate is computed again in the backward pass, not stored."""
    return _QuickGELU.apply(x)


_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def known_name(activation: Callable[[Tensor], Tensor]) -> str | None:
    """What `bias_gelu` calls an activation without parameters, None where it does not know it."""
    # The two, and the approximation of the second by a tanh, differ by more than 1e-4 in this range.
    with torch.no_grad(), torch.device("cpu"):
        points = torch.linspace(-4, 4, 65, dtype=torch.float64)
        found = activation(points.clone())
        return next((name for name, known in _KNOWN.items() if torch.allclose(known(points), found, atol=1e-6)), None)
