"""What operations and backends hand each other: weights as named tuples, and how rows are clips, frames and patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class BranchWeights(NamedTuple):
    """One branch: down-projection, depthwise convolution, up-projection. D token width, R bottleneck width."""

    down_weight: Tensor  # (R, D)
    down_bias: Tensor  # (R,)
    conv_weight: Tensor  # (R, 1, 3) over frames, or (R, 1, 3, 3) over the patch grid
    conv_bias: Tensor  # (R,)
    up_weight: Tensor  # (D, R)
    up_bias: Tensor  # (D,)


class TEDWeights(NamedTuple):
    """Both branches of a TED-Adapter; a branch that is None is switched off.

    Attributes:
        temporal: TE, convolution over frames.
        difference: TD, convolution over the patch grid.
        shared: whether the branches carry the same down- and up-projection (the paper's Eqs. 6-7); the up-projection's
            bias then enters every token once.
    """

    temporal: BranchWeights | None  # TE, conv over frames
    difference: BranchWeights | None  # TD, conv over the patch grid
    shared: bool = False


class MSTAWeights(NamedTuple):
    """MSTA's adapter: D token width, d bottleneck width.

    Attributes:
        after_up: whether the temporal convolution follows the up-projection (depthwise) or stands beside it (grouped).
    """

    down_weight: Tensor  # (d, D)
    down_bias: Tensor  # (d,)
    shared_weight: Tensor  # (d, d), the same tensor in the towers of both modalities
    shared_bias: Tensor  # (d,)
    up_weight: Tensor  # (D, d)
    up_bias: Tensor  # (D,)
    conv_weight: Tensor | None = None  # (D, d / groups, 3) over frames; after the up-projection (D, 1, 3)
    conv_bias: Tensor | None = None  # (D,)
    after_up: bool = False

    def tensors(self) -> list[Tensor]:
        """All six or eight."""
        return [field for field in self if isinstance(field, Tensor)]


class TimeLayout(NamedTuple):
    """Where the frames of a clip are among tokens.

    Each frame a sequence of its own, (B*T, L, D) with the frames of a clip adjacent; or, joint, all in one sequence
    (B, 1 + N*T, D), a class token without a time first, then patches with time running fastest.
    """

    num_frames: int
    joint: bool = False


class Geometry(NamedTuple):
    """How the rows of a (B*T, L, D) tensor are clips, frames and patches."""

    num_frames: int
    grid: tuple[int, int]
    class_token: bool
    patches_only: bool = False  # there are class tokens, and neither branch takes them


class Branches(NamedTuple):
    """Weights as the operators carry them: BranchWeights' six tensors, or none for a branch that is off.

    With shared projections the difference branch has conv_weight and conv_bias alone.
    """

    temporal: list[Tensor]
    difference: list[Tensor]

    @property
    def shared(self) -> bool:
        return len(self.difference) == 2

    def weights(self) -> TEDWeights:
        """The weights as the reference takes them."""
        temporal = BranchWeights(*self.temporal) if self.temporal else None
        if not self.difference:
            return TEDWeights(temporal, None)
        shared = len(self.difference) == 2  # Dynamo before torch 2.14 sees no value in a property of a named tuple
        own = [*self.temporal[:2], *self.difference, *self.temporal[4:]] if shared else self.difference
        return TEDWeights(temporal, BranchWeights(*own), shared)

    def projections(self) -> list[list[Tensor]]:
        """The six tensors of every down- and up-projection that exists, TE's first."""
        return [part for part in (self.temporal, self.difference) if len(part) == 6]

    def difference_arguments(self) -> list[Tensor]:
        """What the mixer takes of the difference branch: conv_weight, conv_bias and the down-projection's bias."""
        if not self.difference:
            return []
        conv = self.difference if self.shared else self.difference[2:4]
        return [*conv, self.temporal[1] if self.shared else self.difference[1]]

    def hidden_shape(self, x: Tensor) -> tuple[int, int, int]:
        """Shape of h, all that lies between the projections of x (B*T, L, D): (B*T, L, C), TE's columns first."""
        return x.shape[0], x.shape[1], sum(part[0].shape[0] for part in self.projections())

    def down_weight(self) -> Tensor:
        """(C, D): the down-projections below each other."""
        return _joined([part[0] for part in self.projections()], dim=0)

    def up_weight(self) -> Tensor:
        """(D, C): the up-projections beside each other."""
        return _joined([part[4] for part in self.projections()], dim=1)

    def down_bias(self) -> Tensor | None:
        """(C,): TE's bias and zeros for TD, whose bias is added after the difference of two frames cancels it here."""
        if not self.temporal:
            return None
        bias = self.temporal[1]
        return bias if len(self.projections()) == 1 else torch.cat([bias, torch.zeros_like(bias)])

    def up_biases(self, patches_only: bool) -> tuple[Tensor, Tensor]:
        """(D,) fp32 for class-token rows and for patch rows."""
        temporal = self.temporal[5].float() if self.temporal else torch.zeros_like(self.difference[5]).float()
        temporal = temporal.contiguous()
        class_bias = torch.zeros_like(temporal) if patches_only else temporal
        return class_bias, temporal + self.difference[5] if len(self.difference) == 6 else temporal

    @classmethod
    def of(cls, weights: TEDWeights, dtype: torch.dtype | None) -> Branches:
        """Both branches in one dtype, or with None in their own, to run beside each other."""
        temporal, difference = ([] if part is None else list(part) for part in weights[:2])
        if weights.shared and temporal and difference:
            difference = difference[2:4]
        if dtype is not None:
            temporal, difference = ([tensor.to(dtype) for tensor in part] for part in (temporal, difference))
        return cls(temporal, difference)

    @classmethod
    def in_turn(cls, weights: TEDWeights, dtype: torch.dtype | None) -> list[Branches]:
        """Each branch that is on alone, to run after one another; with shared projections the up-projection's bias
        enters with the first."""
        turns = [weights._replace(difference=None), weights._replace(temporal=None)]
        branches = [cls.of(turn, dtype) for turn in turns if turn.temporal is not None or turn.difference is not None]
        if len(branches) == 2 and weights.shared:
            branches[1].difference[5] = torch.zeros_like(branches[1].difference[5])
        return branches


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)


class MixerWeights:
    """The weights of a mixer: everything between the two projections of a TED-Adapter.

    Args:
        temporal: conv_weight (R, 1, 3) and conv_bias (R,), or empty.
        difference: conv_weight (R, 1, 3, 3), conv_bias (R,) and the bias (R,) of the down-projection, or empty.
        shared: both branches read the same R columns and their results are summed.
        geometry: frames of a clip, grid, class token.

    A backend's Mixer computes it. Rows h, u, du and dh are contiguous (B*T, L, C); C is 2R with two projections (TE's
    columns first), else R. `forward(h, u)` writes u of h. `backward(h, du, dh)` writes dh and returns the gradients of
    TE's conv_weight, conv_bias and down-projection bias, then the same of TD; a branch that is off has none, and a
    down-projection that is shared has one, among TE's. du of class tokens that take no part may be cleared.
    """

    def __init__(self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry) -> None:
        self.geometry, self.shared = geometry, shared
        self.temporal = [tensor.contiguous() for tensor in temporal]
        self.difference = [tensor.contiguous() for tensor in difference]
        self.width = (temporal or difference)[0].shape[0]

    @classmethod
    def of(cls, branches: Branches, geometry: Geometry) -> Self:
        """The mixer of an adapter's weights."""
        return cls(branches.temporal[2:4], branches.difference_arguments(), branches.shared, geometry)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Memory in fp32 for the gradients of each branch, three tensors or none."""
        both = self.temporal, self.difference
        temporal, difference = (
            [torch.empty_like(part[i], dtype=torch.float32) for i in (0, 1, 1) if part] for part in both
        )
        return temporal, difference

    def in_order(self, temporal: list[Tensor], difference: list[Tensor]) -> list[Tensor]:
        """The filled gradients as `backward` returns them."""
        if self.shared:
            temporal[2] += difference.pop()
        return temporal + difference


def addresses(tensors: list[Tensor], count: int) -> list[int]:
    """Where the values are, or that many zeros where there are no tensors."""
    return [tensor.data_ptr() for tensor in tensors] or [0] * count


def weight_gradients(
    branches: Branches,
    down: Tensor,
    up: Tensor,
    class_sum: Tensor,
    patch_sum: Tensor,
    small: list[Tensor],
    patches_only: bool,
) -> list[Tensor]:
    """From what a backend has summed over all tokens to the gradients of all tensors of `branches`.

    Args:
        branches: the weights; C are the columns of h.
        down: (C, D), dhᵀ x.
        up: (D, C), dyᵀ u.
        class_sum: (D,), dy over class tokens.
        patch_sum: (D,), dy over all other tokens.
        small: what a Mixer's backward pass returns.
        patches_only: whether the branches take patch tokens alone.
    """
    width = branches.projections()[0][0].shape[0]
    biases = [patch_sum if patches_only else class_sum + patch_sum] if branches.temporal else []
    return in_order(branches, down.split(width), up.split(width, dim=1), [*biases, patch_sum], small)


def in_order(
    branches: Branches, downs: Sequence[Tensor], ups: Sequence[Tensor], biases: Sequence[Tensor], small: list[Tensor]
) -> list[Tensor]:
    """Gradients in the order of `branches` and in its layout, of each projection's weights and what the mixer gives."""
    gradients: list[Tensor] = []
    if branches.temporal:
        conv_weight, conv_bias, down_bias = small[:3]
        gradients += [downs[0], down_bias, conv_weight, conv_bias, ups[0], biases[0]]
    if branches.shared:
        gradients += small[3:]
    elif branches.difference:
        conv_weight, conv_bias, down_bias = small[-3:]
        gradients += [downs[-1], down_bias, conv_weight, conv_bias, ups[-1], biases[-1]]
    tensors = [tensor for part in branches for tensor in part]
    return [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def as_rows(x: Tensor) -> Tensor:
    """Contiguous tokens (..., C) as rows (N, C)."""
    return x.view(-1, x.shape[-1])


def in_layout_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's dtype and strides, which DistributedDataParallel wants, in memory of its own."""
    own_memory = gradient.untyped_storage().nbytes() == gradient.nbytes
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride() and own_memory:
        return gradient
    return torch.empty_like(tensor).copy_(gradient)
