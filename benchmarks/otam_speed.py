"""OTAM for all pairs at once against a loop over cells and a loop over pairs: time of a call and peak memory.

    python benchmarks/otam_speed.py
    python benchmarks/otam_speed.py --cases training --no-compile

From the frame features of queries and classes to the distances of all pairs. The eager reference computes the cosines
of all pairs at once and then runs the recursion cell by cell with tensors of all pairs, as published code does; "pair
by pair" does so for one query and one class at a time. All variants have the same inputs and take turns in one run. A
variant that disagrees with the reference in double precision is not timed, and the exit code is then 1. The floor is
the matrix product of the cosines alone, two more backward. Memory is the peak of one forward and backward above the
inputs, on a CPU measured for each variant in a process of its own. Writes otam_speed.json and otam_speed.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, framework
from benchmarks.framework import EAGER, PASSES
from benchmarks.workloads import Leaves, Workload
from m2clip.matching import frame_distances, otam

OURS, OURS_COMPILED, PAIRS = "m2clip", "m2clip compiled", "pair by pair"
SMOOTHING, DIM = 0.5, 512
MOST_CELLS = 10_000  # that are computed one by one


@dataclass(frozen=True)
class Case:
    """queries: of an episode, all classes together."""

    name: str
    episodes: int
    queries: int
    classes: int
    frames: int
    dtype: str = "float32"

    @property
    def pairs(self) -> int:
        return self.episodes * self.queries * self.classes

    @property
    def cells(self) -> int:
        return self.pairs * self.frames**2


CASES = (
    Case("training", 1, 25, 5, 8),
    Case("training-16", 1, 25, 5, 16),
    Case("test", 1000, 5, 5, 8),
    Case("tiny", 1, 2, 2, 3),
)


def batched(query: Tensor, support: Tensor) -> Tensor:
    return otam(frame_distances(query, support), SMOOTHING)


def cell_by_cell(query: Tensor, support: Tensor) -> Tensor:
    """The same as the recursion is written: one small operation after the other, each for all pairs."""
    cosines = torch.einsum("...qtd,...nsd->...qnts", F.normalize(query, dim=-1), F.normalize(support, dim=-1))
    distances = 1 - cosines
    return one_way(distances) + one_way(distances.mT)


def one_way(distances: Tensor) -> Tensor:
    """Soft minimum over the alignments in one direction, (..., T, S) -> (...), zero columns included."""
    padded = F.pad(distances, (1, 1))
    frames, columns = padded.shape[-2:]
    zero = padded[..., 0, 0]
    costs = [[zero] for _ in range(frames)]
    for m in range(1, columns):
        costs[0].append(padded[..., 0, m] + costs[0][m - 1])
    for l in range(1, frames):
        for m in range(1, columns):
            before = [costs[l - 1][m - 1], costs[l][m - 1]]
            if m in (1, columns - 1):
                before.append(costs[l - 1][m])
            weights = [torch.exp(-cost / SMOOTHING) for cost in before]
            total = weights[0] + weights[1] if len(weights) == 2 else weights[0] + weights[1] + weights[2]
            costs[l].append(padded[..., l, m] - SMOOTHING * torch.log(total))
    return costs[-1][-1]


def pair_by_pair(query: Tensor, support: Tensor) -> Tensor:
    distances = [
        cell_by_cell(own[None], sequence[None])
        for queries, classes in zip(query, support, strict=True)
        for own in queries
        for sequence in classes
    ]
    return torch.stack(distances).view(*query.shape[:2], support.shape[1])


def features(case: Case) -> dict[str, Tensor]:
    """Queries (E, Q, T, DIM) and classes (E, C, T, DIM) in double precision."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (case.episodes, getattr(case, name), case.frames, DIM) for name in ("queries", "classes")}
    return {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}


class Problem(framework.Problem):
    what = "OTAM"
    products = (1, 3)
    baselines = {EAGER: (EAGER,), PAIRS: (PAIRS,)}
    compiled = (OURS_COMPILED,)
    overwrites = ()
    memory_on = ("cpu", "cuda")
    constants = {"smoothing": SMOOTHING, "dim": DIM, "dtype": "float32"}

    def __init__(self, case: Case, device: torch.device) -> None:
        work = Workload("otam", case.name, features(case), lambda leaves, _: batched(*leaves.values()))
        super().__init__(case, device, work, output=(case.episodes, case.queries, case.classes))

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        episodes = f"{case['episodes']} episode{'' if case['episodes'] == 1 else 's'}"
        return f"{episodes} of {case['queries']} queries x {case['classes']} classes, {case['frames']} frames"

    def reference(self, leaves: Leaves) -> Tensor:
        return cell_by_cell(*leaves.values())

    def builders(self) -> tuple[dict[str, framework.Builder], dict[str, str]]:
        found: dict[str, framework.Builder] = {
            EAGER: lambda: self.variant(lambda: self.reference(self.leaves)),
            OURS: lambda: self.on("auto"),
            PAIRS: lambda: self.variant(lambda: pair_by_pair(*self.leaves.values())),
            OURS_COMPILED: lambda: self.compile(lambda leaves: batched(*leaves.values())),
        }
        if self.case.cells <= MOST_CELLS:
            return found, {}
        del found[PAIRS]
        return found, {PAIRS: f"{self.case.cells} cells one by one take minutes"}

    def forward_flops(self) -> int:
        return 2 * self.case.cells * DIM

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        query, support = (leaf.detach().flatten(1, 2) for leaf in self.leaves.values())
        slope = query @ support.mT

        def backward() -> None:
            query @ support.mT, slope @ support, slope.mT @ query

        return dict(zip(PASSES, (lambda: query @ support.mT, backward), strict=True))


def main() -> None:
    command.run(__file__, __doc__, Problem, {"cpu": CASES, "cuda": CASES}, quick=("training", "tiny"))


if __name__ == "__main__":
    main()
