"""bias_gelu: a linear layer's bias and its GELU in one pass over the output.

For layers that are run without their bias because no compiler fuses the two, frozen towers for example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from .bottleneck import ACTIVATIONS
from .checks import check_float, check_shape
from .operator import Operator

GELUS = ("quick_gelu", "gelu")

# ---- reference ----


def bias_gelu_reference(h: Tensor, bias: Tensor, activation: str) -> Tensor:
    """act(h + bias) for h (..., C) and bias (C,)."""
    return ACTIVATIONS[activation](h + bias.to(h.dtype))


# ---- operator ----


def _backward(
    run: Any, dg: Tensor, saved: list[Tensor], needs: list[bool], h: Tensor, bias: Tensor, activation: str
) -> list[Tensor]:
    return [*run.backward(dg, h, bias, activation, *needs)]


_bias_gelu = Operator(
    "bias_gelu",
    "Tensor h, Tensor bias, str activation",
    {"triton": "triton.gelu"},
    reference=bias_gelu_reference,
    forward=lambda run, h, bias, activation, keep: (run.forward(h, bias, activation),),
    backward=_backward,
    check=lambda h, bias, _: check_shape("bias", bias, tuple(h.shape[-1:]), h.device),
    like=lambda run, h, *_: (torch.empty_like(h, memory_format=torch.contiguous_format),),
)


# ---- public ----


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
    if activation not in GELUS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(GELUS)}")
    check_float("h", h)
    check_shape("bias", bias, tuple(h.shape[-1:]), h.device)
    chosen = dispatch.choose("bias_gelu", h, backend, layout=activation)
    if chosen == "reference":
        return bias_gelu_reference(h, bias, activation)
    return _bias_gelu(h, bias, activation, chosen)
