"""cosine_cross_entropy and soft_target_kl: losses of the scaled cosine similarities of videos and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..torch_private import transformed
from ..verification.keys import loss_layout
from .checks import check_device, check_float, check_labels, check_number, check_range
from .operator import Operator, full_precision, watched

# ---- reference ----

_IGNORE_NOTHING = torch.iinfo(torch.int64).min  # every target must be a class, also -100


def cosine_logits(v: Tensor, w: Tensor, logit_scale: Tensor) -> Tensor:
    """(B, C) scaled cosine similarities of v (B, D) and w (C, D)."""
    return logit_scale * F.normalize(v, dim=-1) @ F.normalize(w, dim=-1).T


def cosine_cross_entropy_reference(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean cross-entropy of the scaled cosine logits against class indices (Eq. 11); 0 for an empty batch."""
    if v.shape[0] == 0:
        return _no_loss(v, w, logit_scale)
    return F.cross_entropy(cosine_logits(v, w, logit_scale), targets, ignore_index=_IGNORE_NOTHING)


def soft_target_kl_reference(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> Tensor:
    """Mean over both directions of KL(target || softmax(logits)), target rows softmax(target_scale * [same label]).

    0 for an empty batch.
    """
    if v.shape[0] == 0:
        return _no_loss(v, w, logit_scale)
    logits = cosine_logits(v, w, logit_scale)
    same = (labels[:, None] == labels[None, :]).to(logits.dtype)
    target = F.softmax(target_scale * same, dim=-1)
    video_to_text = F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")
    text_to_video = F.kl_div(F.log_softmax(logits.T, dim=-1), target, reduction="batchmean")
    return (video_to_text + text_to_video) / 2


def _no_loss(*tensors: Tensor) -> Tensor:
    """0, with zero gradients to the tensors, whatever their values."""
    return torch.stack([tensor.flatten()[:0].sum() for tensor in tensors]).sum()


# ---- operators ----


def _operator(name: str, arguments: str, reference: Callable[..., Tensor]) -> Operator:
    """Of a loss of `v, w, labels, logit_scale` and options; a module of a backend has both losses."""

    def forward(run: Any, *arguments: Any) -> Sequence[Tensor]:
        loss, saved = getattr(run, name)(*arguments[:-1])
        return loss, *saved

    def backward(
        run: Any, slope: Tensor, saved: list[Tensor], needs: list[bool], v: Tensor, w: Tensor, *options: Any
    ) -> list[Tensor]:
        dv, dw, dscale = getattr(run, f"{name}_backward")(slope, v, w, saved, *options, *needs[:2])
        return [dv, dw, options[0].new_empty(0), dscale if needs[3] else dscale.new_empty(0)]

    def check(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, *options: float) -> None:
        _check_pair(v, w, logit_scale)
        check_labels("labels", labels, v.shape[0], v.device)
        if options:  # both directions
            _check_same_samples(v, w)

    def like(run: Any, v: Tensor, w: Tensor, *options: Any) -> Sequence[Tensor]:
        return v.new_empty((), dtype=torch.float32), *getattr(run, f"{name}_saved")(v, w)

    return Operator(
        name,
        f"Tensor v, Tensor w, {arguments}",
        {"native": "native.losses", "triton": "triton.losses"},
        reference=lambda v, w, *options: reference(v.float(), w.float(), *options),
        forward=forward,
        backward=backward,
        like=like,
        flops=lambda v, w, *_: 2 * v[0] * w[0] * v[1],
        backward_flops=lambda needs, v, w, *_: 2 * v[0] * w[0] * v[1] * (needs[0] + needs[1]),
        check=check,
        memory_format=torch.preserve_format,
    )


_cosine_cross_entropy = _operator(
    "cosine_cross_entropy", "Tensor targets, Tensor logit_scale", cosine_cross_entropy_reference
)
_soft_target_kl = _operator(
    "soft_target_kl", "Tensor labels, Tensor logit_scale, float target_scale", soft_target_kl_reference
)


# ---- public ----


def cosine_cross_entropy(
    v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Cross-modal classification: mean cross-entropy of ``logit_scale * cos(v_i, w_c)`` over all C classes.

    Args:
        v: video features (B, D), of any length (they are normalised here).
        w: text features of all classes (C, D), likewise.
        targets: class indices (B,), int64.
        logit_scale: 0-d tensor, the multiplier itself and not its logarithm; may require a gradient.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        0-d float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes or devices that do not fit together; on the CPU, a target outside [0, C). Elsewhere such a
            target gives a NaN loss with Triton and stops the process with PyTorch's own kernels.
        TypeError: targets that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 11.
    """
    _check_pair(v, w, logit_scale)
    check_labels("targets", targets, v.shape[0], v.device)
    chosen = dispatch.choose("cosine_cross_entropy", v, backend, layout=loss_layout(v.shape[0], w.shape[0]))
    v, w, logit_scale = _for_loss(v, w, logit_scale, chosen)
    with full_precision(v):
        if chosen != "reference":
            return _cosine_cross_entropy(v, w, targets, logit_scale, chosen)
        if _readable(targets):
            check_range(targets, w.shape[0])
        return cosine_cross_entropy_reference(v, w, targets, logit_scale)


def soft_target_kl(
    v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, *, target_scale: float = 10.0, backend: str = "auto"
) -> Tensor:
    """Video-text contrastive loss: KL divergence to soft targets, averaged over both directions.

    ``target_i = softmax_j(target_scale * [labels_i = labels_j])``; the loss is the mean over rows of
    ``KL(target_i || softmax(logit_scale * cos))``, once for video to text and once for text to video.

    Args:
        v: video features (B, D). w: text features of the same samples (B, D). labels: (B,) int64.
        logit_scale: 0-d tensor, the multiplier itself.
        target_scale: sharpness of the target distribution (10 in the authors' code).
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        0-d float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes or devices that do not fit together. TypeError: labels that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 10; targets as in ActionCLIP and the authors' code.
    """
    _check_pair(v, w, logit_scale)
    target_scale = check_number("target_scale", target_scale)
    check_labels("labels", labels, v.shape[0], v.device)
    _check_same_samples(v, w)
    chosen = dispatch.choose("soft_target_kl", v, backend, layout=loss_layout(v.shape[0], w.shape[0]))
    v, w, logit_scale = _for_loss(v, w, logit_scale, chosen)
    with full_precision(v):
        if chosen != "reference":
            return _soft_target_kl(v, w, labels, logit_scale, target_scale, chosen)
        return soft_target_kl_reference(v, w, labels, logit_scale, target_scale)


def loss_dtype(tensor: Tensor) -> torch.dtype:
    """What a loss of such features is computed in: logits at scale 100 overflow no fp16 then."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_pair(v: Tensor, w: Tensor, logit_scale: Tensor) -> None:
    check_float("v", v)
    check_float("w", w)
    check_float("logit_scale", logit_scale, rows=False)
    if v.dim() != 2 or w.dim() != 2 or v.shape[1] != w.shape[1]:
        raise ValueError(f"v must be (B, D) and w (C, D), got {tuple(v.shape)} and {tuple(w.shape)}")
    check_device("w", w, v.device)
    if logit_scale.dim() != 0:
        raise ValueError(f"logit_scale must be a 0-d tensor, got shape {tuple(logit_scale.shape)}")
    if logit_scale.device.type != "cpu":  # one on the CPU is a plain number to PyTorch
        check_device("logit_scale", logit_scale, v.device)


def _check_same_samples(v: Tensor, w: Tensor) -> None:
    if w.shape[0] != v.shape[0]:
        raise ValueError(f"v and w must describe the same samples, got {v.shape[0]} and {w.shape[0]}")


def _for_loss(v: Tensor, w: Tensor, logit_scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features in the dtype the loss is computed in.

    Triton kernels cast what they have loaded, and read the scale where the features are.
    """
    dtype = loss_dtype(v)
    if backend != "triton":
        return v.to(dtype), w.to(dtype), logit_scale.to(dtype)
    logit_scale = logit_scale.to(v.device, dtype, non_blocking=True)
    return (v, w, logit_scale) if v.dtype == w.dtype else (v.to(dtype), w.to(dtype), logit_scale)


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device or breaking a trace."""
    return tensor.device.type == "cpu" and not watched(tensor) and not transformed()
