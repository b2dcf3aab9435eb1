"""The inputs a call is verified on: small, but with the real D, R, branches and switches.

Clips, frames, tokens, grids and batches vary between calls of one model, so there are cases on both sides of what a
kernel may distinguish: a tile that is full and one that is not, numbers that are multiples of 16 and others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operands import TimeLayout
from ..selfcheck_cases import (
    Case,
    MstaShape,
    TedShape,
    Tensors,
    bottleneck_case,
    cross_entropy_case,
    gelu_case,
    msta_case,
    soft_target_case,
    ted_case,
)
from .keys import MOST_FRAMES, Call

LOGIT_SCALE = 100.0  # CLIP's, where features are wide


class VerificationCase(NamedTuple):
    """A case, the dtype of its inputs, and whether it runs under autocast to the call's dtype."""

    call: Call
    case: Case

    @property
    def autocast(self) -> bool:
        return "autocast" in self.call.layout.split()

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.autocast else self.call.dtype


def cases(call: Call) -> list[VerificationCase]:
    """What a kernel of this call is compared on."""
    return [VerificationCase(call, case) for case in _OPS[call.op](call, frozenset(call.layout.split()))]


def _ted(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    branches = next(name for name in ("both", "shared", "temporal", "difference") if name in switches)
    prefix, patches_only = int("no-class-token" not in switches), "patches-only" in switches
    if "long" in switches:
        shapes = [(MOST_FRAMES + 1, (3, 2), 1)]
    else:
        shapes = [(3, (3, 5), 2), (8, (14, 14), 1)]
    for frames, grid, clips in shapes:
        shape = TedShape(frames, grid, call.dim, call.width, prefix, branches, "sequential" in switches)
        yield ted_case(shape._replace(clips=clips, patches_only=patches_only))


def _bottleneck(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    activation = next(name for name in ("gelu", "quick_gelu", "relu", "none") if name in switches)
    for rows, scale in (((3, 7), 0.5), ((4, 64), 1.0)):
        case = bottleneck_case(activation, (*rows, call.dim), call.width, scale, "branch" not in switches)
        yield case._replace(inputs=partial(_off_the_kink, case.inputs)) if activation == "relu" else case


def _gelu(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    activation = next(name for name in ("gelu", "quick_gelu") if name in switches)
    for rows in ((3, 7), (4, 64)):
        yield gelu_case(activation, (*rows, call.dim))


def _msta(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    after_up, joint = "after-up" in switches, "joint" in switches
    for frames, patches in ((3, 5), (8, 16)):
        shape = (2, 1 + patches * frames) if joint else (2 * frames, 1 + patches)
        time = None if "text" in switches else TimeLayout(frames, joint)
        case = msta_case(MstaShape(*shape, call.dim, call.width, time, after_up))
        yield case._replace(inputs=partial(_off_the_kink, case.inputs))


def _cross_entropy(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    sizes = [(5, 7), (64, 400)]
    if "many" in switches:  # few and many classes, with cosines that are kept and that are made twice
        sizes = [(20, 1100), (1000, 1100), (2700, 400)]
    for rows, columns in sizes:
        yield cross_entropy_case(rows, columns, call.dim, _scale(call.dim))


def _soft_target(call: Call, switches: frozenset[str]) -> Iterator[Case]:
    for rows in (1100,) if "many" in switches else (7, 64):
        yield soft_target_case(rows, call.dim, _scale(call.dim))


def _scale(dim: int) -> float:
    """By which the logits of random features spread as those of CLIP do; narrow ones have larger cosines."""
    return round(min(LOGIT_SCALE, 4.5 * dim**0.5), 1)


def _off_the_kink(drawn: Callable[[], Tensors]) -> Tensors:
    """The inputs with biases by which no value before a ReLU is so near 0 that a rounding opens or closes it.

    A value that is there makes a gradient jump, which says nothing of the kernel.
    """
    tensors = drawn()
    hidden = tensors["x"].flatten(0, -2)
    for layer in ("down", "shared"):
        if f"{layer}_weight" in tensors:
            weight = tensors[f"{layer}_weight"]
            tensors[f"{layer}_bias"] = bias = _widest_gap(hidden @ weight.T)
            hidden = F.relu(hidden @ weight.T + bias)
    return tensors


def _widest_gap(values: Tensor) -> Tensor:
    """For each column (N, C) the bias that moves the middle of its widest gap in the middle half of its values to 0."""
    ordered = values.sort(dim=0).values
    first, last = len(ordered) // 4, max(len(ordered) * 3 // 4, len(ordered) // 4 + 2)
    inner = ordered[first:last]
    gaps = inner[1:] - inner[:-1]
    place = gaps.argmax(dim=0, keepdim=True)
    return -(inner.gather(0, place) + gaps.gather(0, place) / 2)[0]


_OPS: dict[str, Callable[[Call, frozenset[str]], Iterator[Case]]] = {
    "ted_adapter": _ted,
    "bottleneck_adapter": _bottleneck,
    "bias_gelu": _gelu,
    "msta_adapter": _msta,
    "cosine_cross_entropy": _cross_entropy,
    "soft_target_kl": _soft_target,
}
