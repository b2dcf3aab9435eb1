"""ted_adapter on the Triton backend: down-projection, mixer and up-projection with its residual.

Both branches are projected at once. Only x and h are kept for the backward pass, whose mixer writes u once more. The
forward pass has three plans, which compute the same: a launch for each step, or one launch for all of them, whose tiles
are made for a narrow or for a wide bottleneck. Weights may have another dtype than x, in which all is computed: the
launch that prepares them rounds them, and gradients are written in theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operands import Branches, Geometry, in_order
from .device import architecture, config_or_rule
from .mixer import prepared
from .one_pass import WIDEST_NARROW, forward_narrow, forward_wide
from .projection import project, project_and_sum
from .ted_weights import split, up_bias_gradients, up_biases

_NARROW = 128  # columns of h up to which tensor cores are faster than the memory


class Plan(NamedTuple):
    """A plan of the forward pass as a configuration, which can be measured like a tile."""

    name: str


def plan_question(branches: Branches, dtype: torch.dtype, architecture: int) -> tuple[int, torch.dtype, int]:
    """What the best plan depends on: columns of h, dtype and GPU."""
    return sum(part[0].shape[0] for part in branches.projections()), dtype, architecture


def plans(branches: Branches, geometry: Geometry, dtype: torch.dtype) -> list[str]:
    """The plans that can run the forward pass, the static rule's first.

    Bytes decide: one launch reads x from memory once where a launch for each step reads it twice, and of the tokens of
    an adapter with few columns little else is read. In a wide adapter products take longer than memory, and in fp32,
    where PyTorch makes them, whatever the width.
    """
    if dtype.itemsize > 2:
        return ["launches"]
    columns = sum(part[0].shape[0] for part in branches.projections())
    usual = ["launches", "wide"]
    if columns > WIDEST_NARROW:
        return usual
    return ["narrow", *usual] if columns <= _NARROW else [*usual, "narrow"]


def forward(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool, plan: str | None = None
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C), empty unless kept. Without residual y is the branches alone.

    The plan is one of `plans`, by default what was measured on this GPU, or else the first.
    """
    x = x.contiguous()
    if plan is None:
        asked = plan_question(branches, x.dtype, architecture(x.device))
        plan = config_or_rule("ted_adapter_plan", Plan(plans(branches, geometry, x.dtype)[0]), x.device, *asked).name
    if x.numel() == 0:
        return torch.empty_like(x), x.new_empty(branches.hidden_shape(x) if keep else 0)
    run = {"launches": forward_in_launches, "narrow": forward_narrow, "wide": forward_wide}[plan]
    y, h = run(x, branches, geometry, residual)
    return y, h if keep else x.new_empty(0)


def forward_in_launches(x: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> tuple[Tensor, Tensor]:
    """y and h of contiguous x, a launch for each step."""
    mixer, (down, bias, up) = prepared(branches, geometry, x.dtype)
    h = (_rows(x) @ down.t() if bias is None else torch.addmm(bias, _rows(x), down.t())).view(branches.hidden_shape(x))
    u = torch.empty_like(h)
    mixer.forward(h, u)
    y = project(u, up.t(), x if residual else None, up_biases(branches, geometry.patches_only), geometry.class_token)
    return y, h


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    dx = x.new_empty(0)
    if x.numel() == 0:
        gradients = [torch.zeros_like(tensor) for part in branches for tensor in part] if need_w else []
        return torch.empty_like(x) if need_x else dx, gradients
    mixer, joined = prepared(branches, geometry, x.dtype)
    du = (_rows(dy) @ joined.up).view_as(h)
    dh = torch.empty_like(h)
    u = torch.empty_like(h) if need_w else None
    small = mixer.backward(h, du, dh, u, need_w)
    del du  # its memory serves for dx
    sums = None
    if need_x and need_w and residual:
        dx, sums = project_and_sum(dh, joined.down, dy)
    elif need_x:
        dx = project(dh, joined.down, dy if residual else None, None, geometry.class_token)
    if u is None:
        return dx, []
    if sums is None:
        sums = dy.sum(dim=(0, 1), dtype=torch.float32)[None]
    downs, ups = split(_rows(dh).t() @ _rows(x), _rows(dy).t() @ _rows(u), branches)
    biases = up_bias_gradients(sums, dy, branches, geometry)
    return dx, in_order(branches, downs, ups, biases, small)


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
