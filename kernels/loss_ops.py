"""The losses as PyTorch operators; ops.py says how operators are bound.

Features are fp32, (B, D) of the videos and (C, D) of the texts; functional.py has checked and cast them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native_losses
from .native_losses import Cosines, Slopes
from .ops import LIBRARY, watched

_FOUND = "Tensor dots, Tensor v_inverse, Tensor w_inverse"
_SLOPES = "(Tensor dots, Tensor v_pull, Tensor w_pull, Tensor logit_scale)"
LIBRARY.define(
    f"cosine_cross_entropy(Tensor v, Tensor w, Tensor targets, Tensor logit_scale) -> "
    f"(Tensor loss, {_FOUND}, Tensor row_log_sum)"
)
LIBRARY.define(
    f"cosine_cross_entropy_backward(Tensor gradient, {_FOUND}, Tensor row_log_sum, Tensor targets, "
    f"Tensor logit_scale) -> {_SLOPES}"
)
LIBRARY.define(
    f"soft_target_kl(Tensor v, Tensor w, Tensor labels, Tensor logit_scale, float target_scale) -> "
    f"(Tensor loss, {_FOUND}, Tensor row_log_sum, Tensor column_log_sum)"
)
LIBRARY.define(
    f"soft_target_kl_backward(Tensor gradient, {_FOUND}, Tensor row_log_sum, Tensor column_log_sum, Tensor labels, "
    f"Tensor logit_scale, float target_scale) -> {_SLOPES}"
)


def _cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> tuple[Tensor, ...]:
    found = native_losses.cosines(v, w)
    loss, row_log_sum = native_losses.cross_entropy(found, targets, logit_scale)
    return loss, *found, row_log_sum


def _cross_entropy_backward(
    gradient: Tensor,
    dots: Tensor,
    v_inverse: Tensor,
    w_inverse: Tensor,
    row_log_sum: Tensor,
    targets: Tensor,
    logit_scale: Tensor,
) -> Slopes:
    found = Cosines(dots, v_inverse, w_inverse)
    return native_losses.cross_entropy_slopes(gradient, found, targets, logit_scale, row_log_sum)


def _soft_target(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> tuple[Tensor, ...]:
    found = native_losses.cosines(v, w)
    loss, row_log_sum, column_log_sum = native_losses.soft_target_kl(found, labels, logit_scale, target_scale)
    return loss, *found, row_log_sum, column_log_sum


def _soft_target_backward(
    gradient: Tensor,
    dots: Tensor,
    v_inverse: Tensor,
    w_inverse: Tensor,
    row_log_sum: Tensor,
    column_log_sum: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    target_scale: float,
) -> Slopes:
    found, log_sums = Cosines(dots, v_inverse, w_inverse), (row_log_sum, column_log_sum)
    return native_losses.soft_target_slopes(gradient, found, labels, logit_scale, log_sums, target_scale)


def _cross_entropy_fake(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> tuple[Tensor, ...]:
    rows, columns = v.shape[0], w.shape[0]
    return v.new_empty(()), v.new_empty(rows, columns), v.new_empty(rows), v.new_empty(columns), v.new_empty(rows)


def _soft_target_fake(
    v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float
) -> tuple[Tensor, ...]:
    return *_cross_entropy_fake(v, w, labels, logit_scale), v.new_empty(w.shape[0])


def _slopes_fake(gradient: Tensor, dots: Tensor, v_inverse: Tensor, w_inverse: Tensor, *rest: Any) -> Slopes:
    return Slopes(*(torch.empty_like(tensor) for tensor in (dots, v_inverse, w_inverse, gradient)))


for _name, _forward, _fake, _backward in (
    ("cosine_cross_entropy", _cross_entropy, _cross_entropy_fake, _cross_entropy_backward),
    ("soft_target_kl", _soft_target, _soft_target_fake, _soft_target_backward),
):
    LIBRARY.impl(_name, _forward, "CPU")
    LIBRARY.impl(f"{_name}_backward", _backward, "CPU")
    torch.library.register_fake(f"m2clip::{_name}", _fake, lib=LIBRARY)
    torch.library.register_fake(f"m2clip::{_name}_backward", _slopes_fake, lib=LIBRARY)


class _CosineCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
        run = torch.ops.m2clip.cosine_cross_entropy if watched(v, w, targets, logit_scale) else _cross_entropy
        loss, *saved = run(v, w, targets, logit_scale)
        ctx.save_for_backward(v, w, *saved, targets, logit_scale)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        v, w, *saved = ctx.saved_tensors
        run = torch.ops.m2clip.cosine_cross_entropy_backward if watched(gradient, v, w) else _cross_entropy_backward
        slopes = Slopes(*run(gradient, *saved))
        dv, dw = _feature_gradients(slopes, v, w, ctx.needs_input_grad)
        return dv, dw, None, slopes.logit_scale


class _SoftTargetKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> Tensor:
        run = torch.ops.m2clip.soft_target_kl if watched(v, w, labels, logit_scale) else _soft_target
        loss, *saved = run(v, w, labels, logit_scale, target_scale)
        ctx.save_for_backward(v, w, *saved, labels, logit_scale)
        ctx.target_scale = target_scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        v, w, *saved = ctx.saved_tensors
        run = torch.ops.m2clip.soft_target_kl_backward if watched(gradient, v, w) else _soft_target_backward
        slopes = Slopes(*run(gradient, *saved, ctx.target_scale))
        dv, dw = _feature_gradients(slopes, v, w, ctx.needs_input_grad)
        return dv, dw, None, slopes.logit_scale, None


def _feature_gradients(
    slopes: Slopes, v: Tensor, w: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    dv = torch.mul(v, slopes.v_pull[:, None]).addmm_(slopes.dots, w) if needed[0] else None
    dw = torch.mul(w, slopes.w_pull[:, None]).addmm_(slopes.dots.t(), v) if needed[1] else None
    return dv, dw


def cosine_cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
    """The operator with its gradient."""
    return _CosineCrossEntropy.apply(v, w, targets, logit_scale)


def soft_target_kl(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> Tensor:
    """The operator with its gradient."""
    return _SoftTargetKL.apply(v, w, labels, logit_scale, target_scale)
