"""ted_adapter on the Triton backend: down-projection by torch, mixer, up-projection with its residual.

Both branches are projected at once. Only x and h are kept for the backward pass, whose mixer writes u once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import Branches, Geometry
from ..ted_gradients import Products, weight_gradients
from .mixer import Mixer
from .projection import project


def hidden_shape(branches: Branches, x: Tensor) -> tuple[int, ...]:
    """Shape of h, all that is kept between the projections of x (B*T, L, D): (B*T, L, C)."""
    return (*x.shape[:2], sum(part[0].shape[0] for part in branches.projections()))


def forward(x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (`hidden_shape`), empty unless kept. Without residual y is the branches alone."""
    x = x.contiguous()
    down, bias = branches.down_weight(), branches.down_bias()
    h = (_rows(x) @ down.t() if bias is None else torch.addmm(bias, _rows(x), down.t())).view(hidden_shape(branches, x))
    u = torch.empty_like(h)
    if h.numel():
        mixer(branches, geometry).forward(h, u)
    y = project(u, branches.up_weight().t(), x if residual else None, branches.up_biases(), geometry.class_token)
    return y, h if keep else x.new_empty(0)


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    du = (_rows(dy) @ branches.up_weight()).view_as(h)
    dh, u = torch.empty_like(h), torch.empty_like(h) if need_w else None
    small = mixer(branches, geometry).backward(h, du, u, dh) if h.numel() else []
    dx = x.new_empty(0)
    if need_x:
        dx = project(dh, branches.down_weight(), dy if residual else None, None, geometry.class_token)
    if u is None:
        return dx, []
    if not small:
        return dx, [torch.zeros_like(tensor) for part in branches for tensor in part]
    total = dy.sum(dim=(0, 1), dtype=torch.float32)
    class_sum = dy[:, 0].sum(dim=0, dtype=torch.float32) if geometry.class_token else torch.zeros_like(total)
    products = Products(_rows(dh).t() @ _rows(x), _rows(dy).t() @ _rows(u), class_sum, total - class_sum, small)
    return dx, weight_gradients(branches, products)


def mixer(branches: Branches, geometry: Geometry) -> Mixer:
    """The mixer of these weights."""
    return Mixer(branches.temporal[2:4], branches.difference_arguments(), branches.shared, geometry)


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
