"""The text adapter: a bottleneck with residual, for the tokens of any transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2clip.kernels import bottleneck_adapter
from m2clip.kernels.ops.checks import check_count, check_flag
from m2clip.kernels.verification.keys import Call, bottleneck_layout


class TextAdapter(nn.Module):
    """``y = x + GELU(x W + b) V + a``.

    Args:
        dim: token width D.
        width: bottleneck width R.
        zero_init_up: start with V = 0, so that the untrained adapter is the identity (the authors' code starts V at
            the default initialisation of a linear layer; its bias is zero in both cases).
        backend: kernel backend, see :func:`m2clip.kernels.bottleneck_adapter`.

    Shape: (..., D) -> (..., D).

    Raises:
        ValueError: sizes below 1.
        TypeError: sizes that are not integers, another zero_init_up than True and False.

    Source: M2-CLIP (AAAI 2024), Eq. 9.
    """

    def __init__(self, dim: int, width: int = 384, *, zero_init_up: bool = True, backend: str = "auto") -> None:
        super().__init__()
        dim, width = check_count("dim", dim), check_count("width", width)
        check_flag("zero_init_up", zero_init_up)
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        self.backend = backend
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if zero_init_up:
            nn.init.zeros_(self.up.weight)

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels for tokens of a dtype (:func:`m2clip.kernels.prepare`)."""
        layout = bottleneck_layout("gelu")
        call = Call("bottleneck_adapter", layout, self.down.in_features, self.down.out_features, dtype)
        return [call] if self.backend == "auto" else []

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.down.weight, self.down.bias, self.up.weight, self.up.bias)
        return bottleneck_adapter(x, *weights, activation="gelu", backend=self.backend)
