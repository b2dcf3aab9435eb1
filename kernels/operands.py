"""The arguments of ted_adapter as the operators carry them: lists of tensors, and how rows are clips and patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .weights import TEDWeights

WIDEST_TOGETHER = 128  # R up to which both branches are projected at once


class Geometry(NamedTuple):
    """How the rows of a (B*T, L, D) tensor are clips, frames and patches."""

    num_frames: int
    grid: tuple[int, int]
    class_token: bool


class Branches(NamedTuple):
    """Weights as the operators carry them: BranchWeights' six tensors, or none for a branch that is off.

    With shared projections the difference branch has conv_weight and conv_bias alone.
    """

    temporal: list[Tensor]
    difference: list[Tensor]

    @property
    def shared(self) -> bool:
        return len(self.difference) == 2

    def difference_conv(self) -> list[Tensor]:
        """conv_weight and conv_bias of the difference branch."""
        return self.difference if self.shared else self.difference[2:4]

    def projections(self) -> list[list[Tensor]]:
        """The six tensors of every down- and up-projection that exists, TE's first."""
        return [part for part in (self.temporal, self.difference) if len(part) == 6]

    def steps(self) -> list[Branches]:
        """What is projected together: narrow branches, whose products would not fill the machine one by one, or those
        that share their projections; wide ones follow each other, which halves the memory between the projections."""
        if len(self.projections()) == 2 and self.temporal[0].shape[0] > WIDEST_TOGETHER:
            return [Branches(self.temporal, []), Branches([], self.difference)]
        return [self]

    def hidden_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of h, all that is kept between the projections of x (B*T, L, D): (steps, B*T, L, C)."""
        steps = self.steps()
        columns = sum(part[0].shape[0] for part in steps[0].projections())
        return len(steps), x.shape[0], x.shape[1], columns

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

    def up_biases(self) -> tuple[Tensor, Tensor]:
        """(D,) fp32 for class-token rows and for patch rows."""
        class_bias = self.temporal[5].float() if self.temporal else torch.zeros_like(self.difference[5]).float()
        if len(self.difference) == 6:
            return class_bias.contiguous(), class_bias + self.difference[5]
        return class_bias.contiguous(), class_bias.contiguous()

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
