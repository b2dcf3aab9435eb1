"""The masked-word loss as a PyTorch operator for every device; ops.py says how operators are bound.

The operator's forward pass computes the gradients too, a few words at a time, so that the logits of all words are never
alive together and no shape that depends on the number of masked words leaves it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from . import native, native_losses
from .ops import LIBRARY, watched

IGNORE = -100  # target of a position that carries no masked word
CHUNK = 2**24  # logits that are alive at a time


class Result(NamedTuple):
    """The loss and its gradients, each of size 0 where it was not asked for."""

    total: Tensor  # 0-d, summed over the masked words
    words: Tensor  # 0-d, how many those are
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)


LIBRARY.define(
    "masked_word_loss(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, bool need_hidden, bool need_weight, "
    "bool need_bias) -> (Tensor total, Tensor words, Tensor hidden, Tensor weight, Tensor bias)"
)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> Result:
    places, size = _places(targets), _chunk(weight)
    total = weight.new_zeros(())
    d_hidden = torch.zeros_like(hidden) if need_hidden else hidden.new_empty(0)
    d_weight, d_bias = (
        torch.empty_like(parameter) if needed else parameter.new_empty(0)
        for parameter, needed in ((weight, need_weight), (bias, need_bias))
    )
    # Without any masked word there is one empty part, whose products are zeros.
    for number, part in enumerate(places.split(size)):
        rows, words = hidden[part], targets[part]
        logits = _logits(rows, weight, bias)
        total += _softmax_minus_target(logits, words)
        kept = 0 if number == 0 else 1  # of what is there already
        if need_hidden:
            d_hidden.index_copy_(0, part, logits @ weight)
        if need_weight:
            d_weight.addmm_(logits.t(), rows, beta=kept)
        if need_bias:
            d_bias.add_(logits.sum(0)) if kept else torch.sum(logits, 0, out=d_bias)
    return Result(total, total.new_full((), places.numel()), d_hidden, d_weight, d_bias)


def _places(targets: Tensor) -> Tensor:
    return (targets != IGNORE).nonzero().squeeze(1)


def _chunk(weight: Tensor) -> int:
    """Words whose logits are alive at a time."""
    return max(1, CHUNK // max(1, len(weight)))


def _logits(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (len(rows), len(weight))
    if rows.device.type == "cpu":
        logits = native.workspace(shape, rows.dtype)
    else:
        logits = rows.new_empty(shape)
    return torch.addmm(bias, rows, weight.t(), out=logits)


def _softmax_minus_target(logits: Tensor, words: Tensor) -> Tensor | float:
    """Turn logits (N, V) into softmax - [word = target]; return the summed cross-entropy."""
    if logits.device.type == "cpu":
        if native.extension is not None and logits.dtype == torch.float32:
            return native_losses.softmax_minus_target(logits, words)
        check_range(words, logits.shape[1])
    own = (torch.arange(len(words), device=words.device), words)
    log_sum = logits.logsumexp(1, keepdim=True)
    total = (log_sum.squeeze(1) - logits[own]).sum()
    logits.sub_(log_sum).exp_()
    logits[own] -= 1  # deterministic on a GPU too, unlike scatter_add_
    return total


def check_range(targets: Tensor, classes: int) -> None:
    """ValueError where a target on the CPU is no class; elsewhere looking would wait for the device."""
    if targets.numel() == 0:
        return
    for extreme in targets.aminmax():
        if not 0 <= extreme < classes:
            raise ValueError(f"targets must lie in [0, {classes}), got {int(extreme)}")


def _fake(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *needed: bool) -> Result:
    gradients = (
        torch.empty_like(tensor) if need else tensor.new_empty(0)
        for tensor, need in zip((hidden, weight, bias), needed, strict=True)
    )
    return Result(weight.new_empty(()), weight.new_empty(()), *gradients)


@register_flop_formula(torch.ops.m2clip.masked_word_loss)
def _flops(hidden: Any, weight: Any, bias: Any, targets: Any, *needed: bool, **_: Any) -> int:
    # Shapes tell no number of masked words: as many as if all were.
    return 2 * hidden[0] * weight[0] * weight[1] * (1 + sum(needed[:2]))


# The products write into given memory, which autograd's bookkeeping forbids even where nothing is recorded.
LIBRARY.impl("masked_word_loss", torch.no_grad()(_run), "CompositeExplicitAutograd")
torch.library.register_fake("m2clip::masked_word_loss", _fake, lib=LIBRARY)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None) -> list[Tensor | None]:
    """Of hidden, weight and bias."""
    needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
    return [saved * gradient if need and gradient is not None else None for saved, need in needed]


torch.library.register_autograd(
    "m2clip::masked_word_loss",
    lambda ctx, total, *rest: (*_gradients(ctx, total), *[None] * 4),
    setup_context=_context,
    lib=LIBRARY,
)


class _Eager(torch.autograd.Function):
    """Where all logits may be alive together they are kept, and only the backward pass computes the gradients.

    That spares a large weight's gradient the multiplication by the loss's, and the memory written for it: a tenth of a
    call on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        places = _places(targets)
        if len(places) > _chunk(weight):
            output = _run(hidden, weight, bias, targets, *ctx.needs_input_grad[:3])
            _context(ctx, (), output)
            ctx.mark_non_differentiable(output.words)
            return output.total, output.words
        rows = hidden[places]
        slopes = torch.addmm(bias, rows, weight.t())
        total = weight.new_zeros(()).add_(_softmax_minus_target(slopes, targets[places]))
        words = total.new_full((), len(places))
        ctx.save_for_backward(slopes, rows, weight, places)
        ctx.shape = hidden.shape
        ctx.mark_non_differentiable(words)
        ctx.set_materialize_grads(False)
        return total, words

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> Any:
        if gradient is None:
            return None, None, None, None
        if len(ctx.saved_tensors) == 3:
            return *_gradients(ctx, gradient), None
        slopes, rows, weight, places = ctx.saved_tensors
        need_hidden, need_weight, need_bias, _ = ctx.needs_input_grad
        slopes = slopes * gradient
        d_hidden = slopes.new_zeros(ctx.shape).index_copy_(0, places, slopes @ weight) if need_hidden else None
        return d_hidden, slopes.t() @ rows if need_weight else None, slopes.sum(0) if need_bias else None, None


def masked_word_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss, with its gradient, and the number of masked words.

    Args:
        hidden: (N, D). weight, bias: (V, D), (V,), of the same dtype, fp32 or fp64.
        targets: (N,), IGNORE where no word is masked.
    """
    inputs = (hidden, weight, bias, targets)
    needed = [torch.is_grad_enabled() and tensor.requires_grad for tensor in inputs[:3]]
    if watched(*inputs):
        return torch.ops.m2clip.masked_word_loss(*inputs, *needed)[:2]
    return _Eager.apply(*inputs) if any(needed) else _run(*inputs, *needed)[:2]
