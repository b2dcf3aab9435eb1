"""Losses that look across processes: the same value and gradients as one process holding the whole batch.

Every process computes its share so that the average over processes, which is what DDP takes of the gradients, equals
the loss of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from m2clip.kernels import soft_target_kl

from .distributed import all_gather, all_gather_with_grad, world_size


@dataclass
class Losses:
    """total: 0-d, what is differentiated; parts: each head's unweighted loss, detached."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


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


def word_divisor(targets: Tensor, ignore: int = -100) -> Tensor:
    """Masked words of all processes over the number of processes: the divisor that makes their average exact."""
    count = (targets != ignore).sum().float()
    return (all_gather(count[None]).sum() / world_size()).clamp_min(torch.finfo(torch.float32).tiny)
