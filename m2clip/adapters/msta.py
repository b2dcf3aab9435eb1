"""MSTA's adapter as a module: it stands beside a whole transformer block, in a vision or a text tower."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.kernels import MSTAWeights, TimeLayout, msta_adapter
from m2clip.kernels.ops.checks import check_count, check_flag, check_kind, check_number
from m2clip.kernels.verification.keys import Call, msta_layout

TEMPORAL_UPS = ("grouped", "dw_after_up", "none")


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()  # a view would have to have a view for a tangent

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0] * ctx.factor


class MSTAAdapter(nn.Module):
    """``base + scale * A(x)``: two projections with ReLU, the second shared between towers, and one up again.

    Args:
        dim: token width D.
        shared: the projection (d -> d) that the adapters of one depth share, which also gives the bottleneck width d.
        temporal_up: "grouped", a convolution over frames beside the up-projection; "dw_after_up", a depthwise one on
            its output; "none" for text.
        scale: lambda.
        prenorm: whether the adapter reads the block's input after the block's first norm.
        rescale_gradient: divide the gradients of the adapter's weights by lambda, as in MMA's code.
        backend: kernel backend, see :func:`m2clip.kernels.msta_adapter`.

    Shape: (S, L, D), (S, L, D) -> (S, L, D); :class:`m2clip.kernels.TimeLayout` says where the frames are.

    Raises:
        ValueError: an unknown temporal_up; rescale_gradient with a scale of 0; sizes below 1.
        TypeError: sizes that are not integers, other switches than True and False.

    Source: MSTA (CVPR 2025); weights start as in MMA's code (Kaiming normal, fan-out; biases 0), so that closeness to
    the frozen tower comes from lambda alone.
    """

    def __init__(
        self,
        dim: int,
        shared: nn.Linear,
        *,
        temporal_up: str = "grouped",
        scale: float = 0.005,
        prenorm: bool = True,
        rescale_gradient: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if temporal_up not in TEMPORAL_UPS:
            raise ValueError(f"unknown temporal_up {temporal_up!r}; choose from {', '.join(TEMPORAL_UPS)}")
        check_flag("prenorm", prenorm)
        check_flag("rescale_gradient", rescale_gradient)
        check_kind("shared", shared, nn.Linear)
        scale = check_number("scale", scale)
        if rescale_gradient and scale == 0:
            raise ValueError("rescale_gradient divides by the scale, which is 0")
        dim = check_count("dim", dim)
        width = check_count("the width of shared", shared.in_features)
        self.scale, self.prenorm, self.backend = scale, prenorm, backend
        self.rescale_gradient, self.after_up = rescale_gradient, temporal_up == "dw_after_up"
        self.down = nn.Linear(dim, width)
        self.shared = shared
        self.up = nn.Linear(width, dim)
        self.conv: nn.Conv1d | None = None
        if temporal_up == "grouped":  # where d does not divide D, groups of several channels
            self.conv = nn.Conv1d(width, dim, 3, padding=1, groups=gcd(width, dim))
        elif self.after_up:
            self.conv = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)
        for layer in (self.down, self.shared, self.up, self.conv):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None  # every layer of the adapter has one
                nn.init.zeros_(layer.bias)

    def weights(self) -> MSTAWeights:
        """The weights in the form the kernels take."""
        layers = (self.down, self.shared, self.up, *(() if self.conv is None else (self.conv,)))
        tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        if self.rescale_gradient:
            tensors = [_ScaledGradient.apply(tensor, 1 / self.scale) for tensor in tensors]
        fields: dict[str, Any] = dict(zip(MSTAWeights._fields, tensors, strict=False))
        return MSTAWeights(**fields, after_up=self.after_up)

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels for tokens of a dtype, each frame a sequence (:func:`m2clip.kernels.prepare`)."""
        if self.backend != "auto" or (self.conv is not None and self.conv.weight.shape[1] != 1):
            return []
        layout = msta_layout(self.conv is not None, self.after_up, joint=False)
        return [Call("msta_adapter", layout, self.down.in_features, self.down.out_features, dtype)]

    def forward(self, x: Tensor, base: Tensor, time: TimeLayout | None = None) -> Tensor:
        return msta_adapter(x, base, self.weights(), time, scale=self.scale, backend=self.backend)
