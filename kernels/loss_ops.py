"""The losses as PyTorch operators; ops.py says how operators are bound.

Features are (B, D) of the videos and (C, D) of the texts; functional.py has checked them and cast them to a dtype that
the backend takes. Beside the loss an operator returns what the backward pass of its backend wants to find again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from .implementations import implementation
from .ops import LIBRARY, implement, on_device_of, watched

_ARGUMENTS = {
    "cosine_cross_entropy": "Tensor targets, Tensor logit_scale, str backend",
    "soft_target_kl": "Tensor labels, Tensor logit_scale, float target_scale, str backend",
}
for _name, _arguments in _ARGUMENTS.items():
    LIBRARY.define(f"{_name}(Tensor v, Tensor w, {_arguments}) -> (Tensor loss, Tensor[] saved)")
    LIBRARY.define(
        f"{_name}_backward(Tensor gradient, Tensor v, Tensor w, Tensor[] saved, {_arguments}, bool need_v, bool need_w)"
        " -> (Tensor dv, Tensor dw, Tensor dscale)"
    )


@register_flop_formula([torch.ops.m2clip.cosine_cross_entropy, torch.ops.m2clip.soft_target_kl])
def _flops(v: Any, w: Any, *rest: Any, **_: Any) -> int:
    return 2 * v[0] * w[0] * v[1]  # of shapes


@register_flop_formula([torch.ops.m2clip.cosine_cross_entropy_backward, torch.ops.m2clip.soft_target_kl_backward])
def _backward_flops(gradient: Any, v: Any, w: Any, *rest: Any, **_: Any) -> int:
    need_v, need_w = rest[-2:]
    return _flops(v, w) * (need_v + need_w)


class _Loss(NamedTuple):
    """One of the operators; its arguments are v, w, labels, logit_scale, options and the backend."""

    name: str

    def forward(self, v: Tensor, w: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        *arguments_of_all, backend = arguments
        with on_device_of(v):
            return getattr(implementation(self.name, backend), self.name)(v, w, *arguments_of_all)

    def backward(
        self, gradient: Tensor, v: Tensor, w: Tensor, saved: list[Tensor], *arguments: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *arguments_of_all, backend, need_v, need_w = arguments
        with on_device_of(v):
            run = getattr(implementation(self.name, backend), f"{self.name}_backward")
            return run(gradient, v, w, saved, *arguments_of_all, need_v, need_w)

    def fake(self, v: Tensor, w: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        saved = getattr(implementation(self.name, arguments[-1]), f"{self.name}_saved")
        return v.new_empty((), dtype=torch.float32), saved(v, w)

    def backward_fake(
        self, gradient: Tensor, v: Tensor, w: Tensor, saved: list[Tensor], *arguments: Any
    ) -> tuple[Tensor, ...]:
        pairs = zip((v, w), arguments[-2:], strict=True)
        return *(torch.empty_like(x) if need else x.new_empty(0) for x, need in pairs), torch.empty_like(gradient)

    def gradients(self, ctx: Any, run: Callable[..., tuple[Tensor, ...]], gradient: Tensor) -> tuple[Any, ...]:
        """Of the operator's arguments; `run` is its backward pass."""
        v, w, labels, logit_scale, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[-4 - len(ctx.options) :]
        dv, dw, dscale = run(gradient, v, w, saved, labels, logit_scale, *ctx.options, *needs[:2])
        return dv if needs[0] else None, dw if needs[1] else None, None, dscale, *[None] * len(ctx.options)

    def register(self) -> _Loss:
        operator, backward = f"m2clip::{self.name}", getattr(torch.ops.m2clip, f"{self.name}_backward")
        implement(self.name, self.forward)
        implement(f"{self.name}_backward", self.backward)
        torch.library.register_fake(operator, self.fake, lib=LIBRARY)
        torch.library.register_fake(f"{operator}_backward", self.backward_fake, lib=LIBRARY)
        # Only the loss is differentiable; the other outputs are what the backward pass needs.
        torch.library.register_autograd(
            operator,
            lambda ctx, gradient, rest: self.gradients(ctx, backward, gradient),
            setup_context=_context,
            lib=LIBRARY,
        )
        return self

    def __call__(self, *inputs: Any) -> Tensor:
        tensors = inputs[:4]
        if watched(*tensors):
            return getattr(torch.ops.m2clip, self.name)(*inputs)[0]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Eager.apply(self, *inputs)
        return self.forward(*inputs)[0]


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[1])
    ctx.options = inputs[4:]


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
        return None, *ctx.loss.gradients(ctx, ctx.loss.backward, gradient)


_CROSS_ENTROPY, _SOFT_TARGET = (_Loss(name).register() for name in _ARGUMENTS)


def cosine_cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor, backend: str) -> Tensor:
    """The operator with its gradient."""
    return _CROSS_ENTROPY(v, w, targets, logit_scale, backend)


def soft_target_kl(
    v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float, backend: str
) -> Tensor:
    """The operator with its gradient."""
    return _SOFT_TARGET(v, w, labels, logit_scale, target_scale, backend)
