"""masked_word_loss: the cross-entropy of the masked words only, one implementation for every device.

The operator's forward pass computes the gradients too, a few words at a time, so that the logits of all words are never
alive together and no shape that depends on the number of masked words leaves it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import extension as native
from ..native import losses as native_losses
from ..torch_private import transformed
from .checks import check_float, check_labels, check_number, check_range, check_shape
from .losses import loss_dtype
from .operator import LIBRARY, define, full_precision, recorded, reference_gradients, watched

IGNORE = -100  # target of a position that carries no masked word
CHUNK = 2**24  # logits that are alive at a time


# ---- reference ----


def masked_word_reference(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy over positions whose target is not -100, for hidden (N, D) and targets (N,) (Eq. 12)."""
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, ignore_index=IGNORE, reduction="sum")


# ---- operator ----


class Result(NamedTuple):
    """The loss and its gradients, each of size 0 where it was not asked for."""

    total: Tensor  # 0-d, summed over the masked words
    words: Tensor  # 0-d, how many those are
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor  # (V,)


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, need_hidden: bool, need_weight: bool, need_bias: bool
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
    logits.sub_(logits.amax(1, keepdim=True))  # a large log-sum would be rounded, for all words alike
    log_sum = logits.logsumexp(1, keepdim=True)
    total = (log_sum.squeeze(1) - logits[own]).sum()
    logits.sub_(log_sum).exp_()
    logits[own] -= 1  # deterministic on a GPU too, unlike scatter_add_
    return total


def _fake(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *needed: bool) -> Result:
    gradients = (
        torch.empty_like(tensor) if need else tensor.new_empty(0)
        for tensor, need in zip((hidden, weight, bias), needed, strict=True)
    )
    return Result(weight.new_empty(()), weight.new_empty(()), *gradients)


def _flops(hidden: Any, weight: Any, bias: Any, targets: Any, *needed: bool, **_: Any) -> int:
    # Shapes tell no number of masked words: as many as if all were.
    return 2 * hidden[0] * weight[0] * weight[1] * (1 + sum(needed[:2]))


_masked_word_loss = define(
    "masked_word_loss(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, bool need_hidden, bool need_weight, "
    "bool need_bias) -> (Tensor total, Tensor words, Tensor hidden, Tensor weight, Tensor bias)",
    _run,
    _fake,
    _flops,
    keys=("CompositeExplicitAutograd",),
    tags=(torch.Tag.cudagraph_unsafe,),  # to know how many words are masked, it waits for the GPU
)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.save_for_backward(*inputs[:4], *output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None) -> list[Tensor | None]:
    """Of hidden, weight, bias and targets."""
    if gradient is None:
        return [None] * 4
    *inputs, targets = ctx.saved_tensors[:4]
    needs = ctx.needs_input_grad[:3]
    if recorded(gradient):
        run = partial(masked_word_reference, targets=targets)
        return [*reference_gradients(run, inputs, needs, gradient), None]
    needed = zip(ctx.saved_tensors[4:], needs, strict=True)
    return [*(saved * gradient if need else None for saved, need in needed), None]


torch.library.register_autograd(
    "m2clip::masked_word_loss",
    lambda ctx, total, *rest: (*_gradients(ctx, total), *[None] * 3),
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
        ctx.together = len(places) <= _chunk(weight)
        if not ctx.together:
            output = _run(hidden, weight, bias, targets, *ctx.needs_input_grad[:3])
            _context(ctx, (hidden, weight, bias, targets), output)
            ctx.mark_non_differentiable(output.words)
            return output.total, output.words
        rows = hidden[places]
        slopes = torch.addmm(bias, rows, weight.t())
        total = weight.new_zeros(()).add_(_softmax_minus_target(slopes, targets[places]))
        words = total.new_full((), len(places))
        ctx.save_for_backward(hidden, weight, bias, targets, slopes, rows, places)
        ctx.mark_non_differentiable(words)
        ctx.set_materialize_grads(False)
        return total, words

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> Any:
        if gradient is None or recorded(gradient) or not ctx.together:
            return tuple(_gradients(ctx, gradient))
        hidden, weight, _, _, slopes, rows, places = ctx.saved_tensors
        need_hidden, need_weight, need_bias, _ = ctx.needs_input_grad
        with full_precision(gradient):
            slopes = slopes * gradient
            d_hidden = torch.zeros_like(hidden).index_copy_(0, places, slopes @ weight) if need_hidden else None
            return d_hidden, slopes.t() @ rows if need_weight else None, slopes.sum(0) if need_bias else None, None


def _summed(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss, with its gradient, and the number of masked words, for hidden (N, D) and targets (N,)."""
    inputs = (hidden, weight, bias, targets)
    if transformed() or hidden.is_meta:  # which words are masked is not known there
        return masked_word_reference(*inputs), (targets != IGNORE).sum()
    needed = [torch.is_grad_enabled() and tensor.requires_grad for tensor in inputs[:3]]
    if watched(*inputs):
        return _masked_word_loss(*inputs, *needed)[:2]
    return _Eager.apply(*inputs) if any(needed) else _run(*inputs, *needed)[:2]


# ---- public ----


def masked_word_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, divisor: Tensor | float | None = None
) -> Tensor:
    """Cross-entropy of the masked words only; positions with target -100 are dropped before any logit is computed.

    Args:
        hidden: (..., D) features before the vocabulary decoder.
        weight: of the decoder, (V, D).
        bias: of the decoder, (V,).
        targets: (...) int64 word ids, -100 where no word is masked.
        divisor: what the summed loss is divided by, not 0; by default the number of masked words. Training on
            several processes passes the global count over the number of processes.

    Returns:
        0-d float32 (float64 for float64 input); exactly 0, with zero gradients, where no word is masked.

    Raises:
        ValueError: shapes or devices that do not fit together; on the CPU, a target that is no word.
        TypeError: targets that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 12 and the head after it.
    """
    check_float("hidden", hidden)
    check_float("weight", weight)
    if isinstance(divisor, Tensor):
        if divisor.dim():
            raise ValueError(f"divisor must be one number, got shape {tuple(divisor.shape)}")
    elif divisor is not None and (divisor := check_number("divisor", divisor)) == 0:
        raise ValueError("divisor must not be 0")
    dim, dtype = hidden.shape[-1], loss_dtype(hidden)
    check_shape("weight", weight, (weight.shape[0], dim), hidden.device)
    check_shape("bias", bias, (weight.shape[0],), hidden.device)
    if isinstance(targets, Tensor) and targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets must be {tuple(hidden.shape[:-1])} like hidden, got {tuple(targets.shape)}")
    rows = hidden.reshape(-1, dim).to(dtype)
    targets = targets.reshape(-1) if isinstance(targets, Tensor) else targets
    check_labels("targets", targets, rows.shape[0], hidden.device)
    weight, bias = weight.to(dtype), bias.to(dtype)
    with full_precision(hidden):
        total, words = _summed(rows, weight, bias, targets)
    return total / (words.clamp_min(1) if divisor is None else divisor)
