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

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import loss_plot
from benchmarks.adapter_variants import PASSES
from benchmarks.loss_speed import TURN_SECONDS, show
from benchmarks.loss_variants import EAGER
from benchmarks.measure import Budget, calls_for, interleave, ratio, summary, write_results
from benchmarks.memory import in_own_process, peak_bytes
from m2clip.matching import frame_distances, otam

OURS, OURS_COMPILED, PAIRS = "m2clip", "m2clip compiled", "pair by pair"
SMOOTHING, DIM = 0.5, 512
TOLERANCE = 1e-5  # of a tensor's norm
MOST_CELLS = 10_000  # that are computed one by one
SMALL_BYTES = 2**22  # features below this need too little memory to be counted in resident pages

Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """queries: of an episode, all classes together."""

    name: str
    episodes: int
    queries: int
    classes: int
    frames: int

    @property
    def pairs(self) -> int:
        return self.episodes * self.queries * self.classes

    @property
    def cells(self) -> int:
        return self.pairs * self.frames**2


TINY = Case("tiny", 1, 2, 2, 3)
CASES = (
    Case("training", 1, 25, 5, 8),
    Case("training-16", 1, 25, 5, 16),
    Case("test", 1000, 5, 5, 8),
    TINY,
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


class Problem:
    """Features of a case, all with a gradient, and what runs on them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(case.episodes, videos, case.frames, DIM) for videos in (case.queries, case.classes)]
        self.inputs = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
        self.slope = torch.randn(case.episodes, case.queries, case.classes, generator=generator).to(device)
        self.case, self.device = case, device

    def gradients(self, metric: Metric, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The distances and all gradients."""
        inputs = [tensor.to(dtype) for tensor in self.inputs]
        distances = metric(*inputs)
        return [distances, *torch.autograd.grad(distances, inputs, self.slope.to(dtype))]

    def runs(self, metric: Metric) -> dict[str, Callable[[], object]]:
        def forward() -> Tensor:
            with torch.no_grad():
                return metric(*self.inputs)

        return dict(zip(PASSES, (forward, lambda: self.gradients(metric)), strict=True))

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        query, support = (tensor.detach().flatten(1, 2) for tensor in self.inputs)
        slope = query @ support.mT

        def backward() -> None:
            query @ support.mT, slope @ support, slope.mT @ query

        return dict(zip(PASSES, (lambda: query @ support.mT, backward), strict=True))

    def variants(self, compiled: bool) -> tuple[dict[str, Metric], dict[str, str], list[str]]:
        """Variants that agree with the reference, why the others are not timed, and complaints of wrong ones."""
        found: dict[str, Metric] = {EAGER: cell_by_cell, OURS: batched}
        missing, complaints = {}, []
        if self.case.cells <= MOST_CELLS:
            found[PAIRS] = pair_by_pair
        else:
            missing[PAIRS] = f"{self.case.cells} cells one by one take minutes"
        if compiled:
            found[OURS_COMPILED] = torch.compile(batched, dynamic=False)
        else:
            missing[OURS_COMPILED] = "left out by --no-compile"
        truth = self.gradients(cell_by_cell, torch.float64)
        for name, metric in list(found.items()):
            try:
                results = self.gradients(metric)
            except Exception as met:  # a compiler that is missing: told, not hidden
                missing[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
                del found[name]
                continue
            error = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, truth, strict=True))
            if not error <= TOLERANCE:
                missing[name] = f"wrong: error {error:.1e}"
                complaints.append(f"{self.case.name}: {name} is {missing[name]}")
                del found[name]
        return found, missing, complaints


def title(case: Any) -> str:
    """A case in one line."""
    episodes = f"{case['episodes']} episode{'' if case['episodes'] == 1 else 's'}"
    return f"{episodes} of {case['queries']} queries x {case['classes']} classes, {case['frames']} frames"


def peak_of(name: str, case: Case, device: torch.device) -> int:
    """Peak bytes of one forward and backward of a variant."""
    metric = {EAGER: cell_by_cell, OURS: batched}[name]
    warm_up = Problem(TINY, device).runs(metric)[PASSES[1]]
    return peak_bytes(Problem(case, device).runs(metric)[PASSES[1]], warm_up, device)


def peaks(case: Case, device: torch.device) -> tuple[dict[str, int], dict[str, str]]:
    """Peak bytes of the variants that work on all pairs at once, and why some are unknown."""
    known, unknown = {}, {}
    for name in (EAGER, OURS):
        if device.type == "cuda":
            known[name] = peak_of(name, case, device)
            continue
        if case.episodes * (case.queries + case.classes) * case.frames * DIM * 4 < SMALL_BYTES:
            unknown[name] = "too little to count in resident pages"
            continue
        own = ["--device", str(device), "--cases", case.name, "--memory-of", name]
        found, reason = in_own_process([__file__, *sys.argv[1:], *own])
        if found:
            known[name] = found["peak_bytes"]
        else:
            unknown[name] = reason
    return known, unknown


def measure(case: Case, device: torch.device, rounds: int, compiled: bool) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()
    problem, passes = Problem(case, device), {}
    ready, not_run, wrong = problem.variants(compiled)
    product = 2 * case.cells * DIM
    for which, gemms in zip(PASSES, (1, 3), strict=True):
        runs = {name: problem.runs(metric)[which] for name, metric in ready.items()}
        runs["floor"] = problem.floor_runs()[which]
        calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
        seconds = interleave(runs, rounds, device, calls=calls)
        times: dict[str, Any] = {name: {"seconds": summary(taken)} for name, taken in seconds.items()}
        baselines = [name for name in (EAGER, PAIRS) if name in ready]
        for name in ready:
            times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
            times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
        floor = {**times.pop("floor"), "gemms": gemms}
        passes[which] = {"flops": gemms * product, "floor": floor, "variants": times}
    memory, unknown = peaks(case, device)
    result = {**asdict(case), "passes": passes, "peak_memory_bytes": memory, "memory_unknown": unknown}
    return {**result, "not_run": not_run}, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    parser.add_argument("--memory-of", metavar="VARIANT", choices=(EAGER, OURS), help="print only its peak as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, cases, complaints, budget = torch.device(args.device), [], [], Budget(args.budget)
    chosen = [case for case in CASES if not args.cases or case.name in args.cases]
    if args.memory_of:
        print(json.dumps({"peak_bytes": peak_of(args.memory_of, chosen[0], device)}))
        return
    rounds = budget.rounds(args.rounds)
    for case in chosen:
        if budget.allows(case.name):
            result, wrong = measure(case, device, rounds, not args.no_compile and budget.allows_compiling())
            show(result, title(result))
            for name, peak in result["peak_memory_bytes"].items():
                print(f"{case.name}, {PASSES[1]}: {name} needs {peak / 1e6:.0f} MB above the features")
            cases.append(result)
            complaints += wrong
    config = {"rounds": rounds, "compiled": not args.no_compile, "threads": torch.get_num_threads()}
    config.update(left_out=budget.left_out, smoothing=SMOOTHING, dim=DIM, dtype="float32")
    path = write_results("otam_speed", device, {"config": config, "cases": cases}, args.out)
    print(path)
    print(loss_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"), "OTAM", title))
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
