"""Where the implementation of an operation on a backend is.

Modules of one operation have the same functions: `forward` and `backward` of an adapter, a function and its
`_backward` of a loss. The reference is no entry: it needs no operator, PyTorch differentiates it.
"""

from __future__ import annotations

import importlib
from typing import Any

_LOSSES = ("cosine_cross_entropy", "soft_target_kl")
_MODULES = {
    ("ted_adapter", "native"): "native_ted",
    ("ted_adapter", "triton"): "triton.ted",
    ("ted_adapter", "cuda"): "cuda_ted",
    ("bottleneck_adapter", "native"): "native_bottleneck",
    ("bottleneck_adapter", "triton"): "triton.bottleneck",
    ("bias_gelu", "triton"): "triton.gelu",
    ("msta_adapter", "native"): "native_msta",
    ("msta_adapter", "triton"): "triton.msta",
    **{(loss, "native"): "native_losses" for loss in _LOSSES},
    **{(loss, "triton"): "triton.losses" for loss in _LOSSES},
}


def implemented(op: str, backend: str) -> bool:
    """Whether there is code for an operation on a backend at all."""
    return (op, backend) in _MODULES


def implementation(op: str, backend: str) -> Any:
    """The module; imported here, so that Triton is loaded where it is used and not before."""
    return importlib.import_module(f".{_MODULES[op, backend]}", __package__)
