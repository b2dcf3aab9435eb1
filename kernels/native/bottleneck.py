"""bottleneck_adapter on the native backend: two matrix products by torch, the activation and the residual compiled.

Tokens are worked through a few at a time. The residual and the bias are written into the output before the
up-projection is added to it; x and h alone are kept for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operands import in_layout_of
from .extension import activate, activate_backward, add_bias, copy_and_sum, workspace
from .ted import Sums, chunk_rows


def forward(
    x: Tensor, weights: list[Tensor], activation: str, scale: float, residual: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """y and h, (N, D) and (N, R), of x (N, D); h is empty unless it is kept.

    The weights are down_weight (R, D), down_bias (R,), up_weight (D, R), up_bias (D,).
    """
    down, down_bias, up, up_bias = weights
    x = x.contiguous()
    width = down.shape[0]
    y = torch.empty_like(x)
    h = x.new_empty(x.shape[0], width) if keep else x.new_empty(0)
    offset = up_bias.float() * scale
    for rows in _chunks(x, down):
        part, out = x[rows], y[rows]
        shape = (part.shape[0], width)
        activated, *rest = workspace((1 if keep else 2, *shape), x.dtype)
        hidden = h[rows] if keep else rest[0]
        torch.addmm(down_bias, part, down.t(), out=hidden)
        activate(activation, hidden, activated)
        if residual:
            add_bias(part[:, None], offset, offset, False, out[:, None])
        else:
            out[:] = offset
        out.addmm_(activated, up.t(), alpha=scale)
    return y, h


def backward(
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    activation: str,
    scale: float,
    residual: bool,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of the four weights, none unless needed."""
    down, _, up, _ = weights
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    sums = Sums(x.dtype)
    for rows in _chunks(x, down):
        part, gradient, hidden = x[rows], dy[rows], h[rows]
        dg, dh, *rest = workspace((3 if need_w else 2, *hidden.shape), x.dtype)
        g = rest[0] if need_w else None
        torch.mm(gradient, up, out=dg)
        if scale != 1:
            dg *= scale
        bias_sum = activate_backward(activation, hidden, dg, g, dh)
        out = dx[rows] if need_x else None
        if need_w or (need_x and residual):
            row_sums = copy_and_sum(gradient[:, None], False, out[:, None] if out is not None and residual else None)
        if g is not None:
            sums.add_product("up", gradient.t(), g)
            sums.add_product("down", dh.t(), part)
            sums.add("down bias", bias_sum)
            sums.add("up bias", row_sums[1])
        if out is not None and residual:
            out.addmm_(dh, down)
        elif out is not None:
            torch.mm(dh, down, out=out)
    if not need_w:
        return dx, []
    if not sums.total:  # an empty batch
        return dx, [torch.zeros_like(tensor) for tensor in weights]
    down_sum, up_sum, bias_sum, offset_sum = (sums.total[name][0] for name in ("down", "up", "down bias", "up bias"))
    gradients = [down_sum, bias_sum, up_sum * scale, offset_sum * scale]
    return dx, [in_layout_of(tensor, gradient) for tensor, gradient in zip(weights, gradients, strict=True)]


def _chunks(x: Tensor, down: Tensor) -> list[slice]:
    if x.numel() == 0:
        return []
    step = chunk_rows(down.shape[0], x.dtype)
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]
