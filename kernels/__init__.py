"""Kernels that turn an image transformer into a video one; usable without any other part of m2clip."""

from .dispatch import BACKENDS, BackendState, Choice, backend_states, explain, use_backend
from .functional import (
    bottleneck_adapter,
    cosine_cross_entropy,
    masked_word_loss,
    patch_grid,
    soft_target_kl,
    ted_adapter,
)
from .gelu_ops import bias_gelu
from .msta_ops import msta_adapter
from .weights import BranchWeights, MSTAWeights, TEDWeights, TimeLayout

__all__ = [
    "BACKENDS",
    "BackendState",
    "BranchWeights",
    "Choice",
    "MSTAWeights",
    "TEDWeights",
    "TimeLayout",
    "backend_states",
    "bias_gelu",
    "bottleneck_adapter",
    "cosine_cross_entropy",
    "explain",
    "masked_word_loss",
    "msta_adapter",
    "patch_grid",
    "soft_target_kl",
    "ted_adapter",
    "use_backend",
]
