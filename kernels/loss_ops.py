"""The losses as PyTorch operators; ops.py says how operators are bound.

Features are fp32, (B, D) of the videos and (C, D) of the texts; functional.py has checked and cast them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

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


@register_flop_formula([torch.ops.m2clip.cosine_cross_entropy, torch.ops.m2clip.soft_target_kl])
def _flops(v: Any, w: Any, *rest: Any, **_: Any) -> int:
    return 2 * v[0] * w[0] * v[1]  # of shapes; the backward pass's products are torch's own


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    v, w, labels, logit_scale, *ctx.options = inputs
    ctx.save_for_backward(v, w, *output[1:], labels, logit_scale)


def _gradients(
    ctx: Any, run: Callable[..., Any], add_product: Callable[..., Tensor], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's arguments; `run` is its backward pass, `add_product` addmm, in place or not."""
    v, w, *saved = ctx.saved_tensors
    need_v, need_w = ctx.needs_input_grad[-4 - len(ctx.options) :][:2]
    slopes = Slopes(*run(gradient, *saved, *ctx.options))
    dv = add_product(v * slopes.v_pull[:, None], slopes.dots, w) if need_v else None
    dw = add_product(w * slopes.w_pull[:, None], slopes.dots.t(), v) if need_w else None
    return dv, dw, None, slopes.logit_scale, *[None] * len(ctx.options)


class _Loss(NamedTuple):
    name: str
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., Slopes]
    fake: Callable[..., tuple[Tensor, ...]]

    def register(self) -> _Loss:
        operator, backward = f"m2clip::{self.name}", getattr(torch.ops.m2clip, f"{self.name}_backward")
        LIBRARY.impl(self.name, self.forward, "CPU")
        LIBRARY.impl(f"{self.name}_backward", self.backward, "CPU")
        torch.library.register_fake(operator, self.fake, lib=LIBRARY)
        torch.library.register_fake(f"{operator}_backward", _slopes_fake, lib=LIBRARY)
        # Only the loss is differentiable; the other outputs are what the backward pass needs. FLOP counters know addmm,
        # but not its form in place.
        gradients = partial(_gradients, run=backward, add_product=torch.addmm)
        torch.library.register_autograd(
            operator, lambda ctx, loss, *rest: gradients(ctx, gradient=loss), setup_context=_context, lib=LIBRARY
        )
        return self

    def __call__(self, *inputs: Any) -> Tensor:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if watched(*tensors):
            return getattr(torch.ops.m2clip, self.name)(*inputs)[0]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Eager.apply(self, *inputs)
        return self.forward(*inputs)[0]


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: _Loss, *inputs: Any) -> Tensor:
        output = loss.forward(*inputs)
        _context(ctx, inputs, output)
        ctx.loss = loss
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, *_gradients(ctx, ctx.loss.backward, Tensor.addmm_, gradient)


_CROSS_ENTROPY = _Loss("cosine_cross_entropy", _cross_entropy, _cross_entropy_backward, _cross_entropy_fake).register()
_SOFT_TARGET = _Loss("soft_target_kl", _soft_target, _soft_target_backward, _soft_target_fake).register()


def cosine_cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
    """The operator with its gradient."""
    return _CROSS_ENTROPY(v, w, targets, logit_scale)


def soft_target_kl(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> Tensor:
    """The operator with its gradient."""
    return _SOFT_TARGET(v, w, labels, logit_scale, target_scale)
