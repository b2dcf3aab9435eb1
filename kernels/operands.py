"""The arguments of ted_adapter as the operators carry them: lists of tensors, and how rows are clips and patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .weights import TEDWeights


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
    def of(cls, weights: TEDWeights, dtype: torch.dtype) -> Branches:
        """Both branches in one dtype, to run beside each other."""
        temporal = [] if weights.temporal is None else [tensor.to(dtype) for tensor in weights.temporal]
        if weights.difference is None:
            return cls(temporal, [])
        shared = weights.shared and weights.temporal is not None
        difference = weights.difference[2:4] if shared else weights.difference
        return cls(temporal, [tensor.to(dtype) for tensor in difference])

    @classmethod
    def in_turn(cls, weights: TEDWeights, dtype: torch.dtype) -> list[Branches]:
        """Each branch that is on alone, to run after one another; with shared projections the up-projection's bias
        enters with the first."""
        turns = [weights._replace(difference=None), weights._replace(temporal=None)]
        branches = [cls.of(turn, dtype) for turn in turns if turn.temporal is not None or turn.difference is not None]
        if len(branches) == 2 and weights.shared:
            branches[1].difference[5] = torch.zeros_like(branches[1].difference[5])
        return branches


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)
