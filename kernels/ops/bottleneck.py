"""bottleneck_adapter: a down-projection, an activation and an up-projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..verification.keys import bottleneck_layout
from .checks import check_flag, check_float, check_number, check_shape, check_width
from .operator import Operator

# ---- reference ----

ACTIVATIONS = {
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "none": lambda x: x,
}


def bottleneck_reference(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    activation: str,
    scale: float,
    residual: bool,
) -> Tensor:
    """y = x + scale * (act(x W + b) V + a) for x (..., D); without residual the leading x is left out (Eq. 9)."""
    hidden = ACTIVATIONS[activation](F.linear(x, down_weight, down_bias))
    branch = F.linear(hidden, up_weight, up_bias) * scale
    return x + branch if residual else branch


# ---- operator ----


def _backward(run: Any, dy: Tensor, saved: list[Tensor], needs: list[bool], x: Tensor, *options: Any) -> list[Tensor]:
    dx, gradients = run.backward(dy, x, *saved, *options, *needs)
    return [dx, *gradients]


def _like(run: Any, x: Tensor, weights: list[Tensor], *options: Any) -> Sequence[Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(x.shape[0], weights[0].shape[0])


def _backward_flops(needs: list[bool], x: Any, weights: Any, *options: Any) -> int:
    need_x, need_w = needs
    return 2 * x[0] * x[1] * weights[0][0] * (1 + need_x + 2 * need_w)


_bottleneck_adapter = Operator(
    "bottleneck_adapter",
    "Tensor x, Tensor[] weights, str activation, float scale, bool residual",
    {"native": "native.bottleneck", "triton": "triton.bottleneck"},
    reference=lambda x, weights, *options: bottleneck_reference(x, *weights, *options),
    forward=lambda run, *arguments: run.forward(*arguments),
    backward=_backward,
    like=_like,
    flops=lambda x, weights, *options: 4 * x[0] * x[1] * weights[0][0],
    backward_flops=_backward_flops,
    check=lambda *arguments: _check(*arguments),
)


# ---- public ----


def bottleneck_adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    activation: str = "gelu",
    scale: float = 1.0,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Bottleneck adapter ``y = x + scale * (act(x W + b) V + a)``.

    Args:
        x: tokens (..., D).
        down_weight: (R, D).
        down_bias: (R,).
        up_weight: (D, R).
        up_bias: (D,).
        activation: "gelu" (exact), "quick_gelu", "relu" or "none".
        scale: factor of the branch.
        residual: whether x itself is added.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (..., D), dtype of x.

    Raises:
        ValueError: shapes that do not fit together, a width of 0, an unknown activation.
        TypeError: tensors that are not floating-point, a scale that is no number.

    Source: M2-CLIP (AAAI 2024), Eq. 9; Houlsby et al. 2019.
    """
    check_float("x", x)
    scale = check_number("scale", scale)
    check_flag("residual", residual)
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
    weights = [down_weight, down_bias, up_weight, up_bias]
    _check(x, weights)
    dim = x.shape[-1]
    chosen = dispatch.choose(
        "bottleneck_adapter", x, backend, down_weight.shape[0], bottleneck_layout(activation, residual)
    )
    if chosen == "reference":
        down_weight, down_bias, up_weight, up_bias = (tensor.to(x.dtype) for tensor in weights)
        return bottleneck_reference(x, down_weight, down_bias, up_weight, up_bias, activation, scale, residual)
    dtype, rows = dispatch.compute_dtype("bottleneck_adapter", x), x.reshape(-1, dim)
    weights = [tensor.to(dtype) for tensor in weights]
    if x.dtype == dtype:
        return _bottleneck_adapter(rows, weights, activation, scale, residual, chosen).reshape(x.shape)
    branch = _bottleneck_adapter(rows.to(dtype), weights, activation, scale, False, chosen).reshape(x.shape)
    return x + branch if residual else branch


def _check(x: Tensor, weights: Sequence[Tensor], *_: Any) -> None:
    width, dim = check_width("down_weight", weights[0]), x.shape[-1]
    shapes = {"down_weight": (width, dim), "down_bias": (width,), "up_weight": (dim, width), "up_bias": (dim,)}
    for (name, shape), tensor in zip(shapes.items(), weights, strict=True):
        check_shape(name, tensor, shape, x.device)
