"""ted_adapter on the Triton backend: down-projection, mixer and up-projection with its residual.

Both branches are projected at once. Only x and h are kept for the backward pass, which computes u once more. The
forward pass has three plans, which compute the same: a launch for each step, or one launch for all of them, whose tiles
are made for a narrow or for a wide bottleneck.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Branches, Geometry
from ..ted_gradients import Products, weight_gradients
from .mixer import Mixer
from .one_pass import WIDEST_NARROW, forward_narrow, forward_wide
from .projection import project, project_and_sum

_NARROW = 128  # columns of h up to which tensor cores are faster than the memory


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

    plan: one of `plans`, by default the first.
    """
    x = x.contiguous()
    plan = plan or plans(branches, geometry, x.dtype)[0]
    if x.numel() == 0:
        return torch.empty_like(x), x.new_empty(branches.hidden_shape(x) if keep else 0)
    run = {"launches": forward_in_launches, "narrow": forward_narrow, "wide": forward_wide}[plan]
    y, h = run(x, branches, geometry, residual)
    return y, h if keep else x.new_empty(0)


def forward_in_launches(x: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> tuple[Tensor, Tensor]:
    """y and h of contiguous x, a launch for each step."""
    down, bias = branches.down_weight(), branches.down_bias()
    h = (_rows(x) @ down.t() if bias is None else torch.addmm(bias, _rows(x), down.t())).view(branches.hidden_shape(x))
    u = torch.empty_like(h)
    Mixer.of(branches, geometry).forward(h, u)
    y = project(u, branches.up_weight().t(), x if residual else None, branches.up_biases(), geometry.class_token)
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
    mixer = Mixer.of(branches, geometry)
    du = (_rows(dy) @ branches.up_weight()).view_as(h)
    dh = torch.empty_like(h)
    small = mixer.backward(h, du, dh, need_w)
    total = None
    if need_x and need_w and residual:
        dx, total = project_and_sum(dh, branches.down_weight(), dy)
    elif need_x:
        dx = project(dh, branches.down_weight(), dy if residual else None, None, geometry.class_token)
    if not need_w:
        return dx, []
    u = du  # in its memory, which has served
    mixer.forward(h, u)
    if total is None:
        total = dy.sum(dim=(0, 1), dtype=torch.float32)
    class_sum = dy[:, 0].sum(dim=0, dtype=torch.float32) if geometry.class_token else torch.zeros_like(total)
    products = Products(_rows(dh).t() @ _rows(x), _rows(dy).t() @ _rows(u), class_sum, total - class_sum, small)
    return dx, weight_gradients(branches, products)


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
