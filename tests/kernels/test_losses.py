"""The losses on the native backend and as operators: errors against fp64, odd shapes, compilers, the same bits always."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip import kernels
from m2clip.kernels import masked_words, native, native_losses, reference

needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension")
LOSS_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
EPS = torch.finfo(torch.float32).eps


def features(rows: int, columns: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """v (B, D), w (C, D), targets and logit scale; lengths differ from row to row, and one of each is zero."""
    generator = torch.Generator().manual_seed(seed)
    v, w = (torch.randn(n, dim, generator=generator) * (torch.rand(n, 1, generator=generator) * 4 + 0.1) for n in (rows, columns))
    targets = torch.randint(0, columns, (rows,), generator=generator)
    return v.to(dtype), w.to(dtype), targets, torch.tensor(30.0)


def cross_entropy(backend: str):
    return lambda v, w, labels, scale: kernels.cosine_cross_entropy(v, w, labels, scale, backend=backend)


def soft_target(backend: str):
    return lambda v, w, labels, scale: kernels.soft_target_kl(v, w, labels, scale, backend=backend)


def loss_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor, weight: float = 0.7) -> list[Tensor]:
    """The loss times a weight and its gradients to all floating-point inputs, in double precision."""
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    value = loss(*leaves) * weight
    value.backward()
    return [value.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.requires_grad)]


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [(a - b).norm().item() for a, b in zip(found, truth, strict=True)]


def assert_as_accurate(native_loss, eager_loss, samples: list[tuple[Tensor, ...]]) -> None:
    """Errors of the native loss and its gradients, the worst of some samples, against those of the eager reference."""
    worst: list[list[float]] = []
    for inputs in samples:
        truth = loss_and_gradients(eager_loss, *(x.double() if x.is_floating_point() else x for x in inputs))
        found, eager = (errors(loss_and_gradients(loss, *inputs), truth) for loss in (native_loss, eager_loss))
        # What rounding alone may do: logits reach the scale, and their errors are relative to it.
        tiny = [EPS * 30 * (1 if i == 0 else tensor.norm().item()) for i, tensor in enumerate(truth)]
        worst.append([max(pair) for pair in zip(*worst[-1:], found, strict=True)] if False else found + eager + tiny)
    for i in range(len(worst[0]) // 3):
        count = len(worst[0]) // 3
        found_error, eager_error, tiny_error = (max(row[i + k * count] for row in worst) for k in range(3))
        factor = GRADIENT_FACTOR if i else LOSS_FACTOR
        assert found_error <= factor * eager_error + tiny_error, (i, found_error, eager_error, tiny_error)
