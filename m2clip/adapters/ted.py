"""The TED-Adapter and its one-token relative, as modules that fit into any vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2clip.kernels import BranchWeights, TEDWeights, ted_adapter
from m2clip.kernels.ops.checks import check_count, check_flag, check_grid
from m2clip.kernels.verification.keys import Call, ted_layout


class Branch(nn.Module):
    """Weights of one branch: down-projection, depthwise convolution (zero at the start), up-projection.

    Args:
        dim: token width D.
        width: bottleneck width R.
        axes: 1 for a convolution over frames, 2 for one over the patch grid.
    """

    def __init__(self, dim: int, width: int, axes: int) -> None:
        super().__init__()
        dim, width = check_count("dim", dim), check_count("width", width)
        self.down = nn.Linear(dim, width)
        self.conv = (nn.Conv1d if axes == 1 else nn.Conv2d)(width, width, 3, padding=1, groups=width)
        self.up = nn.Linear(width, dim)
        for parameter in (self.down.bias, *self.conv.parameters(), self.up.bias):
            nn.init.zeros_(parameter)

    def weights(self) -> BranchWeights:
        assert self.conv.bias is not None  # both adapters build their convolutions with one
        return BranchWeights(
            self.down.weight, self.down.bias, self.conv.weight, self.conv.bias, self.up.weight, self.up.bias
        )


def ted_call(branch: Branch, layout: str, dtype: torch.dtype) -> Call:
    """ted_adapter with the sizes of one of its branches."""
    return Call("ted_adapter", layout, branch.down.in_features, branch.down.out_features, dtype)


def check_layout(
    num_frames: int, grid: tuple[int, int] | None, class_token: bool, num_prefix_tokens: int | None
) -> int:
    """How many tokens are in front of a frame's patches; TypeError or ValueError where tokens cannot lie like that."""
    check_count("num_frames", num_frames)
    check_flag("class_token", class_token)
    if grid is not None:
        check_grid(grid)
    return int(class_token) if num_prefix_tokens is None else check_count("num_prefix_tokens", num_prefix_tokens, 0)


class TEDAdapter(nn.Module):
    """Temporal enhancement and temporal difference between the frames of a clip; the identity until trained.

    Args:
        dim: token width D.
        width: bottleneck width R.
        num_frames: T, frames per clip; the forward pass may override it.
        grid: (H, W) of the patch tokens; by default the square of however many arrive.
        class_token: whether token 0 of each frame is a class token: the word for P of 1 and 0.
        num_prefix_tokens: P, the tokens in front of a frame's patches (a class token, registers), each treated as a
            class token; by default class_token says it.
        temporal: switch of the branch over frames.
        difference: switch of the branch over differences of frames.
        shared_projection: one down- and one up-projection for both branches (the paper's equations) instead of a pair
            each (the authors' code).
        sequential: apply the difference branch to the output of the temporal one.
        backend: kernel backend, see :func:`m2clip.kernels.ted_adapter`.

    Shape: (B*T, L, D) -> (B*T, L, D), L = P + H*W, the T frames of a clip adjacent.

    Raises:
        ValueError: if both branches are switched off, for sizes below 1, or at the call for tokens that do not fit.
        TypeError: sizes that are not integers, other switches than True and False.

    Source: M2-CLIP (AAAI 2024), Eqs. 6-8.
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
        temporal: bool = True,
        difference: bool = True,
        shared_projection: bool = False,
        sequential: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_prefix_tokens = check_layout(num_frames, grid, class_token, num_prefix_tokens)
        for name, switch in (("temporal", temporal), ("difference", difference), ("sequential", sequential)):
            check_flag(name, switch)
        check_flag("shared_projection", shared_projection)
        if not (temporal or difference):
            raise ValueError("a TED-Adapter needs at least one of its branches: temporal or difference")
        self.num_frames, self.grid = num_frames, grid
        self.sequential, self.backend = sequential, backend
        self.temporal: Branch | None = None
        self.difference: Branch | None = None
        if temporal:
            self.temporal = Branch(dim, width, axes=1)
        if difference:
            self.difference = Branch(dim, width, axes=2)
        self.shared_projection = False
        if shared_projection and self.temporal is not None and self.difference is not None:
            self.shared_projection = True
            self.difference.down, self.difference.up = self.temporal.down, self.temporal.up

    def weights(self) -> TEDWeights:
        """The weights in the form the kernels take."""
        return TEDWeights(
            None if self.temporal is None else self.temporal.weights(),
            None if self.difference is None else self.difference.weights(),
            self.shared_projection,
        )

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels for tokens of a dtype (:func:`m2clip.kernels.prepare`)."""
        if self.backend != "auto":
            return []
        temporal, difference, frames = self.temporal is not None, self.difference is not None, self.num_frames
        shared, class_token = self.shared_projection, self.num_prefix_tokens == 1
        layouts = [ted_layout(temporal, difference, shared, class_token, False, self.sequential, frames)]
        if self.num_prefix_tokens and temporal and difference:  # class tokens alone, for which there is no difference
            layouts.append(ted_layout(True, False, num_frames=frames))
        if self.num_prefix_tokens > 1 and temporal:
            layouts.append(ted_layout(True, False, class_token=False, num_frames=frames))
        branch = self.temporal or self.difference
        assert branch is not None  # the constructor has seen to it
        return [ted_call(branch, layout, dtype) for layout in layouts]

    def forward(self, x: Tensor, num_frames: int | None = None) -> Tensor:
        grid, prefix = self.grid, self.num_prefix_tokens
        if prefix and x.shape[1] == 1:
            # Class tokens alone, as a tower's last block sends them: nothing for the difference branch.
            grid, prefix = (0, 0), 1
        return ted_adapter(
            x,
            self.weights(),
            self.num_frames if num_frames is None else num_frames,
            grid=grid,
            num_prefix_tokens=prefix,
            sequential=self.sequential,
            backend=self.backend,
        )


class FrameFeatureAdapter(nn.Module):
    """Temporal adapter on a clip's frame features, with residual; the identity until trained.

    Args:
        dim: feature width D.
        width: bottleneck width, by default D // 2.

    Shape: (B, T, D) -> (B, T, D).

    Raises:
        ValueError: sizes below 1, or at the call features of another shape.
        TypeError: sizes that are not integers.

    Source: the authors' code (output temporal adapter).
    """

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        self.temporal = Branch(dim, check_count("dim", dim) // 2 if width is None else width, axes=1)

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What it asks of the kernels; features come in fp32 whatever the tokens' dtype is."""
        return [ted_call(self.temporal, ted_layout(True, False, class_token=False), torch.float32)]

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 3:
            raise ValueError(f"features must be (B, T, D), got shape {tuple(features.shape)}")
        clips, frames, dim = features.shape
        weights = TEDWeights(self.temporal.weights(), None)
        tokens = features.reshape(clips * frames, 1, dim)
        return ted_adapter(tokens, weights, frames, grid=(1, 1), class_token=False).reshape(features.shape)
