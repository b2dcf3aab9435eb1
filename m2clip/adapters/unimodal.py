"""The adapters of ST-Adapter and AIM, which turn CLIP's vision tower into a video model without any text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2clip.adapters.ted import Branch, check_layout, ted_call
from m2clip.kernels import TEDWeights, bottleneck_adapter, ted_adapter
from m2clip.kernels.ops.checks import check_count, check_number
from m2clip.kernels.verification.keys import Call, bottleneck_layout, ted_layout

DROPS = ("clip", "token")


class STAdapter(Branch):
    """``patch + W_up DWConv_frames(W_down patch + b) + a`` on patch tokens; the identity until trained.

    It is the temporal branch of :class:`TEDAdapter` without the class token, which passes untouched.

    Args:
        dim: token width D.
        width: bottleneck width R.
        num_frames: T, frames per clip; the forward pass may override it.
        grid: (H, W) of the patch tokens; by default the square of however many arrive.
        class_token: whether token 0 of each frame is a class token.
        num_prefix_tokens: P, the tokens in front of a frame's patches, which pass untouched; by default class_token
            says it.
        backend: kernel backend, see :func:`m2clip.kernels.ted_adapter`.

    Shape: (B*T, L, D) -> (B*T, L, D), L = P + H*W, the T frames of a clip adjacent.

    Raises:
        ValueError: sizes below 1, or at the call tokens that do not fit.
        TypeError: sizes that are not integers.

    Source: ST-Adapter (NeurIPS 2022), with the kernel of 3x1x1 and the start at the identity of its published code.
    """

    def __init__(
        self,
        dim: int,
        width: int = 384,
        num_frames: int = 8,
        *,
        grid: tuple[int, int] | None = None,
        class_token: bool = True,
        num_prefix_tokens: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(dim, width, axes=1)
        self.num_prefix_tokens = check_layout(num_frames, grid, class_token, num_prefix_tokens)
        self.num_frames, self.grid, self.backend = num_frames, grid, backend

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels for tokens of a dtype (:func:`m2clip.kernels.prepare`)."""
        layout = ted_layout(True, False, False, self.num_prefix_tokens == 1, True, num_frames=self.num_frames)
        return [ted_call(self, layout, dtype)] if self.backend == "auto" else []

    def forward(self, x: Tensor, num_frames: int | None = None) -> Tensor:
        num_frames = check_count("num_frames", self.num_frames if num_frames is None else num_frames)
        if self.num_prefix_tokens and x.shape[1] == 1:
            return x  # class tokens alone, as a tower's last block sends them
        return ted_adapter(
            x,
            TEDWeights(self.weights(), None),
            num_frames,
            grid=self.grid,
            num_prefix_tokens=self.num_prefix_tokens,
            patches_only=True,
            backend=self.backend,
        )


class BottleneckAdapter(nn.Module):
    """``y = x + s * (W_up GELU(W_down x + b) + a)``, or without the ``x +``; adds nothing until trained.

    Args:
        dim: token width D.
        width: bottleneck width.
        residual: whether x itself is added.
        scale: s.
        backend: kernel backend, see :func:`m2clip.kernels.bottleneck_adapter`.

    Shape: (..., D) -> (..., D).

    Raises:
        ValueError: sizes below 1.
        TypeError: sizes that are not integers.

    Source: AIM (ICLR 2023) and its code: W_up, a and b start at zero, W_down at a truncated normal of deviation 0.02.
    """

    def __init__(
        self, dim: int, width: int, *, residual: bool = True, scale: float = 1.0, backend: str = "auto"
    ) -> None:
        super().__init__()
        dim, width = check_count("dim", dim), check_count("width", width)
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        self.residual, self.scale, self.backend = residual, scale, backend
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels for tokens of a dtype (:func:`m2clip.kernels.prepare`)."""
        layout = bottleneck_layout("gelu", self.residual)
        call = Call("bottleneck_adapter", layout, self.down.in_features, self.down.out_features, dtype)
        return [call] if self.backend == "auto" else []

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.down.weight, self.down.bias, self.up.weight, self.up.bias)
        return bottleneck_adapter(
            x, *weights, activation="gelu", scale=self.scale, residual=self.residual, backend=self.backend
        )


class StochasticDepth(nn.Module):
    """In training, leave a branch out at random and scale what stays by 1 / (1 - rate).

    Args:
        rate: probability p of being left out, from 0 to below 1.
        per: what is left out as a whole: "clip", drawn for each clip, or "token", a position among the L tokens drawn
            for all frames of all clips at once.

    Shape: (B*T, L, D) -> (B*T, L, D).

    Raises:
        ValueError: another rate or per; at the call, frames that are no whole clips.
        TypeError: frames that are no integer.

    Source: stochastic depth (Huang et al. 2016); "token" is what AIM's code does, whose tokens come first in its
    tensors where its layer expects the batch.
    """

    def __init__(self, rate: float, per: str = "clip") -> None:
        super().__init__()
        check_number("rate", rate)
        if not 0 <= rate < 1 or per not in DROPS:
            raise ValueError(f"rate must be in [0, 1) and per one of {', '.join(DROPS)}, got {rate} and {per!r}")
        self.rate, self.per = rate, per

    def forward(self, branch: Tensor, num_frames: int) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        if branch.shape[0] % check_count("num_frames", num_frames):
            raise ValueError(f"the first dimension ({branch.shape[0]}) is not a multiple of num_frames ({num_frames})")
        frames = branch.unflatten(0, (-1, num_frames))  # (B, T, L, D)
        shape = (frames.shape[0], 1, 1, 1) if self.per == "clip" else (1, 1, frames.shape[2], 1)
        kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return (frames * kept.div_(1 - self.rate)).flatten(0, 1)


class AIMAdapters(nn.Module):
    """What AIM adds to one transformer block.

    Args:
        dim: token width D. width: bottleneck width.
        num_t_adapters: 1, behind the attention over frames, or 2, one in front of it as well.
        joint_scale: s of the adapter beside the MLP.
        drop_path: probability that the temporal and the joint branch are left out in training; per: see
            :class:`StochasticDepth`.
        backend: kernel backend of the adapters.

    Raises:
        ValueError: sizes out of range.
        TypeError: sizes that are not integers.

    Source: AIM (ICLR 2023), Fig. 2.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        num_t_adapters: int = 1,
        joint_scale: float = 0.5,
        drop_path: float = 0.0,
        per: str = "clip",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if check_count("num_t_adapters", num_t_adapters) > 2:
            raise ValueError(f"num_t_adapters must be 1 or 2, got {num_t_adapters}")
        self.temporal_in = BottleneckAdapter(dim, width, backend=backend) if num_t_adapters == 2 else None
        self.temporal = BottleneckAdapter(dim, width, residual=False, backend=backend)
        self.spatial = BottleneckAdapter(dim, width, backend=backend)
        self.joint = BottleneckAdapter(dim, width, residual=False, scale=joint_scale, backend=backend)
        self.drop_path = StochasticDepth(drop_path, per)
