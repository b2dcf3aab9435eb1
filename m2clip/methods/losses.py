"""Losses that look across processes: the same value and gradients as one process holding the whole batch.

Every process computes its share so that the average over processes, which is what DDP takes of the gradients, equals
the loss of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from m2clip.distributed import all_gather, all_gather_with_grad, world_size
from m2clip.kernels import cosine_cross_entropy, soft_target_kl
from m2clip.kernels.ops.losses import cosine_logits


@dataclass
class Losses:
    """What a training step differentiates.

    Attributes:
        total: 0-d, what is differentiated.
        parts: each head's unweighted loss, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def classification_loss(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of a classifier, each video's times the weight of its class.

    The mean is over the videos, not over their weights, so that processes and passes of one step add up to the whole.

    Args:
        logits: (B, C).
        labels: (B,).
        smoothing: share of the target that all classes have in equal parts.
        class_weights: (C,) of mean 1 over the training videos; None for 1.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return (class_weights[labels] * losses).mean()


def is_plain(smoothing: float, class_weights: Tensor | None) -> bool:
    """Whether a classification loss is plain cross-entropy, which has a kernel for cosines."""
    return smoothing == 0 and class_weights is None


def cosine_loss(
    video: Tensor,
    text: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """:func:`classification_loss` of scaled cosines.

    Args:
        video: (B, D_vl).
        text: (C, D_vl) features of all classes.
        labels: see there.
        logit_scale: the multiplier, 0-d.
        smoothing: see there.
        class_weights: see there.
    """
    if is_plain(smoothing, class_weights):
        return cosine_cross_entropy(video, text, labels, logit_scale)
    with torch.autocast(video.device.type, enabled=False):
        return classification_loss(cosine_logits(video, text, logit_scale), labels, smoothing, class_weights)


def contrastive_loss(video: Tensor, text: Tensor, labels: Tensor, logit_scale: Tensor) -> Tensor:
    """Eq. 10 over the videos of all processes.

    Args:
        video: (B, D_vl) this process's videos.
        text: (C, D_vl) features of all classes, equal on every process.
        labels: (B,) this process's labels.
        logit_scale: the multiplier, 0-d.
    """
    all_labels = all_gather(labels)
    return soft_target_kl(all_gather_with_grad(video), text[all_labels], all_labels, logit_scale)


def sigmoid_loss(video: Tensor, text: Tensor, labels: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Of all pairs of the videos and the label texts of all processes, whether their classes are the same.

    ``-1/B sum_ij log sigmoid(z_ij (s cos(v_i, w_j) + b))``, z_ij being 1 for the same class and -1 for others.

    Args:
        video: (B, D_vl) this process's videos.
        text: (C, D_vl) features of all classes, equal on every process.
        labels: (B,) this process's labels.
        logit_scale: s, 0-d.
        logit_bias: b, 0-d.

    Source: SigLIP (Zhai et al. 2023), Eq. 1, whose pairs are all of different classes.
    """
    all_labels = all_gather(labels)
    v, w = (F.normalize(features, dim=-1) for features in (all_gather_with_grad(video), text[all_labels]))
    same = all_labels[:, None] == all_labels
    logits = logit_scale * v @ w.T + logit_bias
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(all_labels)


def word_divisor(targets: Tensor, ignore: int = -100) -> Tensor:
    """Masked words of all processes over the number of processes: the divisor that makes their average exact."""
    count = (targets != ignore).sum().float()
    return (all_gather(count[None]).sum() / world_size()).clamp_min(torch.finfo(torch.float32).tiny)
