"""The plans of a backend: ways to run one operation, of which it takes one by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Branches, Geometry
from ..ops.operator import IMPLEMENTATIONS, implementation
from .keys import MOST_FRAMES, Call


def plans_of(call: Call, backend: str, device: torch.device) -> list[str]:
    """Names of the plans that can run a call on a device, the static rule's first; empty where there is one way."""
    if backend not in IMPLEMENTATIONS.get(call.op, ()):
        return []
    plans = getattr(implementation(call.op, backend), "plans", None)
    if plans is None:
        return []
    switches = call.layout.split()
    temporal = _branch(call, (1, 3), device) if "difference" not in switches else []
    difference = _branch(call, (1, 3, 3), device) if "temporal" not in switches else []
    if "shared" in switches:
        difference = difference[2:4]
    class_token = "no-class-token" not in switches
    frames = MOST_FRAMES + 1 if "long" in switches else 1
    geometry = Geometry(frames, (1, 1), class_token, class_token and "patches-only" in switches)
    return plans(Branches(temporal, difference), geometry, call.dtype)


def fallbacks(call: Call, backend: str, device: torch.device) -> list[str]:
    """The plans that may take the place of what a backend chooses by itself: those that run wherever tensors begin."""
    plans = plans_of(call, backend, device)
    return [plan for plan in plans if plan in getattr(implementation(call.op, backend), "AT_ANY_ADDRESS", plans)]


def _branch(call: Call, taps: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Weights of the right shapes, in no memory to speak of."""
    width, dim = call.width, call.dim
    shapes = ((width, dim), (width,), (width, *taps), (width,), (dim, width), (dim,))
    return [torch.empty(1, dtype=call.dtype, device=device).expand(shape) for shape in shapes]
