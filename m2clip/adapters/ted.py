"""The TED-Adapter and its one-token relative, as modules that fit into any vision transformer."""

from __future__ import annotations

from torch import Tensor, nn

from m2clip.kernels import BranchWeights, TEDWeights, ted_adapter


class Branch(nn.Module):
    """Weights of one branch: down-projection, depthwise convolution (zero at the start), up-projection."""

    def __init__(self, dim: int, width: int, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.down = nn.Linear(dim, width)
        self.conv = conv
        self.up = nn.Linear(width, dim)
        for parameter in (self.down.bias, *self.conv.parameters(), self.up.bias):
            nn.init.zeros_(parameter)

    def weights(self) -> BranchWeights:
        assert self.conv.bias is not None  # both adapters build their convolutions with one
        return BranchWeights(
            self.down.weight, self.down.bias, self.conv.weight, self.conv.bias, self.up.weight, self.up.bias
        )


class TEDAdapter(nn.Module):
    """Temporal enhancement and temporal difference between the frames of a clip; the identity until trained.

    Args:
        dim: token width D.
        width: bottleneck width R.
        num_frames: T, frames a clip; the forward pass may override it.
        grid: (H, W) of the patch tokens; by default the square of however many arrive.
        class_token: whether token 0 of each frame is a class token.
        temporal, difference: switches of the two branches.
        shared_projection: one down- and one up-projection for both branches (the paper's equations) instead of a pair
            each (the authors' code).
        sequential: apply the difference branch to the output of the temporal one.
        backend: kernel backend, see :func:`m2clip.kernels.ted_adapter`.

    Shape: (B*T, L, D) -> (B*T, L, D), L = H*W (+ 1 with a class token), the T frames of a clip adjacent.

    Raises:
        ValueError: if both branches are switched off, or at the call for tokens that do not fit.

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
        temporal: bool = True,
        difference: bool = True,
        shared_projection: bool = False,
        sequential: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not (temporal or difference):
            raise ValueError("a TED-Adapter needs at least one of its branches: temporal or difference")
        self.num_frames, self.grid, self.class_token = num_frames, grid, class_token
        self.sequential, self.backend = sequential, backend
        self.temporal: Branch | None = None
        self.difference: Branch | None = None
        if temporal:
            self.temporal = Branch(dim, width, nn.Conv1d(width, width, 3, padding=1, groups=width))
        if difference:
            self.difference = Branch(dim, width, nn.Conv2d(width, width, 3, padding=1, groups=width))
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

    def forward(self, x: Tensor, num_frames: int | None = None) -> Tensor:
        grid = self.grid
        if self.class_token and x.shape[1] == 1:
            grid = (0, 0)  # class tokens alone, as a tower's last block sends them: nothing for the difference branch
        return ted_adapter(
            x,
            self.weights(),
            num_frames or self.num_frames,
            grid=grid,
            class_token=self.class_token,
            sequential=self.sequential,
            backend=self.backend,
        )


class FrameFeatureAdapter(nn.Module):
    """Temporal adapter on a clip's frame features, with residual; the identity until trained.

    Args:
        dim: feature width D. width: bottleneck width, by default D // 2.

    Shape: (B, T, D) -> (B, T, D). Source: the authors' code (output temporal adapter).
    """

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        width = width or dim // 2
        self.temporal = Branch(dim, width, nn.Conv1d(width, width, 3, padding=1, groups=width))

    def forward(self, features: Tensor) -> Tensor:
        clips, frames, dim = features.shape
        weights = TEDWeights(self.temporal.weights(), None)
        tokens = features.reshape(clips * frames, 1, dim)
        return ted_adapter(tokens, weights, frames, grid=(1, 1), class_token=False).reshape(features.shape)
