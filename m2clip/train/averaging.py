"""A moving average of the trained weights, which is used in their place once they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "average."


class WeightAverage:
    """An exponential moving average of the trained weights: ``a <- d a + (1 - d) w`` after each step.

    The decay d is ``min(decay, (1 + n) / (10 + n))`` after n steps, so that the untrained weights are soon forgotten.

    Args:
        model: the model, on its device; its trained parameters are averaged.
        decay: the largest d; 0 averages nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._weights = {name: weight.detach() for name, weight in trained.items()} if decay else {}
        self._averages = {name: weight.clone() for name, weight in self._weights.items()}

    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        if self._weights:
            decay = min(self._decay, (1 + steps) / (10 + steps))
            torch._foreach_lerp_(list(self._averages.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the context the model has the averages for weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def tensors(self) -> dict[str, Tensor]:
        """The averages, for a checkpoint; copies on the CPU."""
        return {PREFIX + name: average.to("cpu", copy=True) for name, average in self._averages.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the averages from the tensors of a checkpoint of the same run."""
        for name, average in self._averages.items():
            average.copy_(tensors[PREFIX + name])

    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)
