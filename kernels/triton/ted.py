"""ted_adapter on the Triton backend: down-projection, mixer and up-projection with its residual.

Both branches are projected at once. Only x and h are kept for the backward pass, which computes u once more. The
forward pass has three plans, which compute the same: a launch for each step, or one launch for all of them, whose tiles
are made for a narrow or for a wide bottleneck.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operands import Branches, Geometry
from ..ted_gradients import in_layout_of
from .device import architecture, tuned
from .mixer import Mixer
from .one_pass import WIDEST_NARROW, forward_narrow, forward_wide
from .projection import project, project_and_sum
from .ted_weights import Joined, split, up_bias_gradients, up_biases

_NARROW = 128  # columns of h up to which tensor cores are faster than the memory


class Plan(NamedTuple):
    """A plan of the forward pass as a configuration, which can be measured like a tile."""

    name: str


def plan_question(branches: Branches, dtype: torch.dtype, architecture: int) -> tuple[int, torch.dtype, int]:
    """What the best plan depends on: columns of h, dtype and GPU."""
    return sum(part[0].shape[0] for part in branches.projections()), dtype, architecture


def plans(branches: Branches, geometry: Geometry, dtype: torch.dtype) -> list[str]:
    """The plans that can run the forward pass, the static rule's first.

    Bytes decide: one launch reads x from memory once where three launches read it twice, and of the tokens of an
    adapter with few columns little else is read. In fp32 products take longer than memory whatever their width, and in
    a wide adapter, too.
    """
    columns = sum(part[0].shape[0] for part in branches.projections())
    usual = ["launches", "wide"]
    if columns > WIDEST_NARROW:
        return usual
    return ["narrow", *usual] if columns <= _NARROW and dtype.itemsize == 2 else [*usual, "narrow"]


def forward(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool, plan: str | None = None
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C), empty unless kept. Without residual y is the branches alone.

    plan: one of `plans`, by default what was measured on this GPU, or else the first.
    """
    x = x.contiguous()
    if plan is None:
        asked = plan_question(branches, x.dtype, architecture(x.device))
        plan = tuned("ted_adapter_plan", Plan(plans(branches, geometry, x.dtype)[0]), x.device, *asked).name
    if x.numel() == 0:
        return torch.empty_like(x), x.new_empty(branches.hidden_shape(x) if keep else 0)
    run = {"launches": forward_in_launches, "narrow": forward_narrow, "wide": forward_wide}[plan]
    y, h = run(x, branches, geometry, residual)
    return y, h if keep else x.new_empty(0)


def forward_in_launches(x: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> tuple[Tensor, Tensor]:
    """y and h of contiguous x, a launch for each step."""
    down, bias, up = Joined.of(branches)
    h = (_rows(x) @ down.t() if bias is None else torch.addmm(bias, _rows(x), down.t())).view(branches.hidden_shape(x))
    u = torch.empty_like(h)
    Mixer.of(branches, geometry).forward(h, u)
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
    mixer, joined = Mixer.of(branches, geometry), Joined.of(branches)
    du = (_rows(dy) @ joined.up).view_as(h)
    dh = torch.empty_like(h)
    small = mixer.backward(h, du, dh, need_w)
    sums = None
    if need_x and need_w and residual:
        dx, sums = project_and_sum(dh, joined.down, dy)
    elif need_x:
        dx = project(dh, joined.down, dy if residual else None, None, geometry.class_token)
    if not need_w:
        return dx, []
    u = du  # in its memory, which has served
    mixer.forward(h, u)
    if sums is None:
        sums = dy.sum(dim=(0, 1), dtype=torch.float32)[None]
    downs, ups = split(_rows(dh).t() @ _rows(x), _rows(dy).t() @ _rows(u), branches)
    biases = up_bias_gradients(sums, dy, branches, geometry)
    return dx, _in_order(branches, downs, ups, biases, small)


def _in_order(
    branches: Branches, downs: list[Tensor], ups: list[Tensor], biases: list[Tensor], small: list[Tensor]
) -> list[Tensor]:
    """Gradients in the order of `branches` and in its layout, of each projection's weights and what the mixer gives."""
    gradients: list[Tensor] = []
    if branches.temporal:
        conv_weight, conv_bias, down_bias = small[:3]
        gradients += [downs[0], down_bias, conv_weight, conv_bias, ups[0], biases[0]]
    if branches.shared:
        gradients += small[3:]
    elif branches.difference:
        conv_weight, conv_bias, down_bias = small[-3:]
        gradients += [downs[-1], down_bias, conv_weight, conv_bias, ups[-1], biases[-1]]
    tensors = [tensor for part in branches for tensor in part]
    return [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
