"""The losses on the native backend: matrix products by torch and compiled passes over what lies between them.

Dot products of the features as they are come first; their lengths, the scale, the softmax and the loss follow in one
pass over the dot products. On the way back another one turns them into the slopes of the loss, and a product each makes
the gradients of the features. All tensors are fp32, features (B, D) and (C, D) with any strides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .extension import extension


class Cosines(NamedTuple):
    """Dot products of v and w, and what makes cosines of them."""

    dots: Tensor  # (B, C)
    v_inverse: Tensor  # (B,) one over the length
    w_inverse: Tensor  # (C,)


class Slopes(NamedTuple):
    """Gradients of a loss: dv = dots @ w + v_pull * v, dw = dots.T @ v + w_pull * w."""

    dots: Tensor  # (B, C)
    v_pull: Tensor  # (B,)
    w_pull: Tensor  # (C,)
    logit_scale: Tensor  # 0-d


def cosine_cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss, 0-d, and what its backward pass takes; ValueError where a target is no class."""
    found = cosines(v, w)
    loss, row_softmax = cross_entropy(found, targets, logit_scale)
    return loss, [*found, row_softmax]


def cosine_cross_entropy_saved(v: Tensor, w: Tensor) -> list[Tensor]:
    """Tensors of the shapes of those that the backward pass takes."""
    rows, columns = v.shape[0], w.shape[0]
    return [v.new_empty(shape) for shape in ((rows, columns), (rows,), (columns,), (2, rows))]


def cosine_cross_entropy_backward(
    gradient: Tensor,
    v: Tensor,
    w: Tensor,
    saved: list[Tensor],
    targets: Tensor,
    logit_scale: Tensor,
    need_v: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v, w (both empty where not needed) and the scale."""
    slopes = cross_entropy_slopes(gradient, Cosines(*saved[:3]), targets, logit_scale, saved[3])
    return _feature_gradients(slopes, v, w, need_v, need_w)


def soft_target_kl(
    v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float
) -> tuple[Tensor, list[Tensor]]:
    """The loss, 0-d, and what its backward pass takes."""
    found = cosines(v, w)
    loss, *softmaxes = soft_target(found, labels, logit_scale, target_scale)
    return loss, [*found, *softmaxes]


def soft_target_kl_saved(v: Tensor, w: Tensor) -> list[Tensor]:
    """Tensors of the shapes of those that the backward pass takes."""
    return [*cosine_cross_entropy_saved(v, w), v.new_empty(2, w.shape[0])]


def soft_target_kl_backward(
    gradient: Tensor,
    v: Tensor,
    w: Tensor,
    saved: list[Tensor],
    labels: Tensor,
    logit_scale: Tensor,
    target_scale: float,
    need_v: bool,
    need_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v, w (both empty where not needed) and the scale."""
    softmaxes = (saved[3], saved[4])
    slopes = soft_target_slopes(gradient, Cosines(*saved[:3]), labels, logit_scale, softmaxes, target_scale)
    return _feature_gradients(slopes, v, w, need_v, need_w)


def _feature_gradients(
    slopes: Slopes, v: Tensor, w: Tensor, need_v: bool, need_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dv = (v * slopes.v_pull[:, None]).addmm_(slopes.dots, w) if need_v else v.new_empty(0)
    dw = (w * slopes.w_pull[:, None]).addmm_(slopes.dots.t(), v) if need_w else w.new_empty(0)
    return dv, dw, slopes.logit_scale


def cosines(v: Tensor, w: Tensor) -> Cosines:
    return Cosines(torch.mm(v, w.t()), _inverse_lengths(v), _inverse_lengths(w))


def cross_entropy(found: Cosines, targets: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, 0-d, and the softmax of every row of logits (2, B); ValueError where a target is no class."""
    targets, loss, row_softmax = targets.contiguous(), torch.empty_like(logit_scale), _empty_softmax(found.v_inverse)
    extension.cross_entropy_forward(
        _problem(found, logit_scale),
        targets.data_ptr(),
        loss.data_ptr(),
        row_softmax.data_ptr(),
        torch.get_num_threads(),
    )
    return loss, row_softmax


def cross_entropy_slopes(
    gradient: Tensor, found: Cosines, targets: Tensor, logit_scale: Tensor, row_softmax: Tensor
) -> Slopes:
    """Slopes of the loss times its 0-d gradient."""
    targets, slopes = targets.contiguous(), _empty_slopes(found, logit_scale)
    extension.cross_entropy_backward(
        _problem(found, logit_scale),
        targets.data_ptr(),
        row_softmax.data_ptr(),
        gradient.data_ptr(),
        _gradients(slopes),
        torch.get_num_threads(),
    )
    return slopes


def soft_target(
    found: Cosines, labels: Tensor, logit_scale: Tensor, target_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, 0-d, and the softmax of every row and of every column of logits (2, B)."""
    labels, loss = labels.contiguous(), torch.empty_like(logit_scale)
    row_softmax, column_softmax = _empty_softmax(found.v_inverse), _empty_softmax(found.w_inverse)
    extension.soft_target_forward(
        _problem(found, logit_scale),
        labels.data_ptr(),
        target_scale,
        loss.data_ptr(),
        row_softmax.data_ptr(),
        column_softmax.data_ptr(),
        torch.get_num_threads(),
    )
    return loss, row_softmax, column_softmax


def soft_target_slopes(
    gradient: Tensor,
    found: Cosines,
    labels: Tensor,
    logit_scale: Tensor,
    softmaxes: tuple[Tensor, Tensor],
    target_scale: float,
) -> Slopes:
    """Slopes of the loss times its 0-d gradient."""
    labels, slopes = labels.contiguous(), _empty_slopes(found, logit_scale)
    extension.soft_target_backward(
        _problem(found, logit_scale),
        labels.data_ptr(),
        target_scale,
        softmaxes[0].data_ptr(),
        softmaxes[1].data_ptr(),
        gradient.data_ptr(),
        _gradients(slopes),
        torch.get_num_threads(),
    )
    return slopes


def softmax_minus_target(logits: Tensor, targets: Tensor) -> float:
    """Turn contiguous logits (N, V) into softmax - [word = target]; return the summed cross-entropy.

    Raises:
        ValueError: a target that is no word.
    """
    return extension.softmax_minus_target(
        logits.data_ptr(), logits.shape[0], logits.shape[1], targets.data_ptr(), torch.get_num_threads()
    )


def _inverse_lengths(features: Tensor) -> Tensor:
    if features.stride(1) != 1:
        features = features.contiguous()
    rows, size = features.shape
    inverse = features.new_empty(rows)
    extension.inverse_lengths(
        features.data_ptr(), rows, size, features.stride(0), inverse.data_ptr(), torch.get_num_threads()
    )
    return inverse


def _problem(found: Cosines, logit_scale: Tensor) -> Any:
    addresses = (tensor.data_ptr() for tensor in (*found, logit_scale))
    return extension.CosineProblem(*found.dots.shape, *addresses)


def _empty_softmax(like: Tensor) -> Tensor:
    """Of rows or columns of logits: the largest, and the logarithms of the sums of exponentials relative to them."""
    return like.new_empty(2, len(like))


def _empty_slopes(found: Cosines, logit_scale: Tensor) -> Slopes:
    return Slopes(*(torch.empty_like(tensor) for tensor in (*found, logit_scale)))


def _gradients(slopes: Slopes) -> Any:
    return extension.CosineGradients(*(tensor.data_ptr() for tensor in slopes))
