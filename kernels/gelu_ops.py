"""bias_gelu: a linear layer's bias and its GELU in one pass over the output; ops.py says how operators are bound.

For layers that are run without their bias because no compiler fuses the two, frozen towers for example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import dispatch, reference
from .implementations import implementation
from .ops import LIBRARY, implement, on_device_of, watched

ACTIVATIONS = ("quick_gelu", "gelu")

LIBRARY.define("bias_gelu(Tensor h, Tensor bias, str activation, str backend) -> Tensor")
LIBRARY.define(
    "bias_gelu_backward(Tensor dg, Tensor h, Tensor bias, str activation, str backend, bool need_h, bool need_bias) "
    "-> (Tensor, Tensor)"
)


def _forward(h: Tensor, bias: Tensor, activation: str, backend: str) -> Tensor:
    with on_device_of(h):
        return implementation("bias_gelu", backend).forward(h, bias, activation)


def _backward(
    dg: Tensor, h: Tensor, bias: Tensor, activation: str, backend: str, need_h: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    with on_device_of(h):
        return implementation("bias_gelu", backend).backward(dg, h, bias, activation, need_h, need_bias)


def _forward_fake(h: Tensor, bias: Tensor, activation: str, backend: str) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


def _backward_fake(
    dg: Tensor, h: Tensor, bias: Tensor, activation: str, backend: str, need_h: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    dh = torch.empty_like(h, memory_format=torch.contiguous_format) if need_h else h.new_empty(0)
    return dh, bias.new_empty(bias.shape if need_bias else (0,))


implement("bias_gelu", _forward)
implement("bias_gelu_backward", _backward)
torch.library.register_fake("m2clip::bias_gelu", _forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::bias_gelu_backward", _backward_fake, lib=LIBRARY)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, bias, *ctx.options = inputs
    ctx.save_for_backward(h, bias)


def _gradient(ctx: Any, dg: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = torch.ops.m2clip.bias_gelu_backward(dg, *ctx.saved_tensors, *ctx.options, *needs)
    return *(found if need else None for found, need in zip(gradients, needs, strict=True)), None, None


torch.library.register_autograd("m2clip::bias_gelu", _gradient, setup_context=_context, lib=LIBRARY)


class _BiasGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor, *options: str) -> Tensor:
        _context(ctx, (h, bias, *options), h)
        return _forward(h, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dg: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        gradients = _backward(dg, *ctx.saved_tensors, *ctx.options, *needs)
        return *(found if need else None for found, need in zip(gradients, needs, strict=True)), None, None


def bias_gelu(h: Tensor, bias: Tensor, activation: str = "quick_gelu", *, backend: str = "auto") -> Tensor:
    """``act(h + bias)``, what follows the matrix product of a linear layer; only h is kept for the backward pass.

    Args:
        h: (..., C), any strides; the layer's output without its bias.
        bias: (C,), of any floating-point dtype.
        activation: "quick_gelu", x * sigmoid(1.702 x), or "gelu", the exact one.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (..., C), dtype of h; also under autocast, which leaves element-wise operations alone.

    Raises:
        ValueError: shapes or devices that do not fit together, an unknown activation.
        TypeError: tensors that are not floating-point.

    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), both forms; QuickGELU as in OpenAI's CLIP.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
    for name, tensor in (("h", h), ("bias", bias)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if h.dim() == 0 or bias.shape != h.shape[-1:]:
        raise ValueError(f"h must be (..., C) and bias (C,), got {tuple(h.shape)} and {tuple(bias.shape)}")
    if bias.device != h.device:
        raise ValueError(f"bias is on {bias.device} and h is on {h.device}: move one of them")
    chosen = dispatch.choose("bias_gelu", h, backend)
    if chosen == "reference":
        return reference.bias_gelu(h, bias.to(h.dtype), activation)
    if watched(h, bias):
        return torch.ops.m2clip.bias_gelu(h, bias, activation, chosen)
    if torch.is_grad_enabled() and (h.requires_grad or bias.requires_grad):
        return _BiasGELU.apply(h, bias, activation, chosen)
    return _forward(h, bias, activation, chosen)
