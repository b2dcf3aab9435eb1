"""Kernels that turn an image transformer into a video one; usable without any other part of m2clip."""

from .functional import (
    available_backends,
    bottleneck_adapter,
    cosine_cross_entropy,
    masked_word_loss,
    patch_grid,
    soft_target_kl,
    ted_adapter,
)
from .weights import BranchWeights, TEDWeights

__all__ = [
    "BranchWeights",
    "TEDWeights",
    "available_backends",
    "bottleneck_adapter",
    "cosine_cross_entropy",
    "masked_word_loss",
    "patch_grid",
    "soft_target_kl",
    "ted_adapter",
]
