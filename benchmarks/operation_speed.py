"""What the benchmarks of one operation share: variants that agree with the reference, timed in turns, and the command.

A benchmark brings its cases and a `Problem` for them; see bottleneck_speed.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks import loss_plot
from benchmarks.adapter_speed import CACHE_BYTES
from benchmarks.adapter_variants import PASSES
from benchmarks.loss_speed import TURN_SECONDS, show
from benchmarks.loss_variants import COMPILED, EAGER
from benchmarks.measure import Budget, calls_for, interleave, overwritten_caches, ratio, summary, write_results
from benchmarks.memory import peak_bytes
from m2clip import kernels

Call = Callable[..., Tensor]
SMALL_BYTES = 2**20  # tokens below this are a measurement of the overhead of a call


class Problem(ABC):
    """Inputs of a case, all with a gradient, and what runs on them.

    Args:
        case: a dataclass with a name and a dtype.
        shapes: of the inputs; the output is of the first one's.
        device: where they are.

    op: the operation. tolerance: by dtype, the error of a variant that is still right, as a share of a tensor's norm.
    products: matrix products of the floor, forward and with backward.
    """

    op: ClassVar[str]
    tolerance: ClassVar[Mapping[str, float]]
    products: ClassVar[tuple[int, int]]

    def __init__(self, case: Any, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        generator, dtype = torch.Generator().manual_seed(0), getattr(torch, case.dtype)
        tensors = [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in (*shapes, shapes[0])]
        *self.inputs, self.dy = (tensor.to(device, dtype) for tensor in tensors)
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.case = case

    @abstractmethod
    def call(self, backend: str, *inputs: Tensor) -> Tensor:
        """The operation on a backend."""

    @abstractmethod
    def floor_runs(self) -> dict[str, Callable[[], object]]:
        """By pass, the matrix products alone."""

    @abstractmethod
    def forward_flops(self) -> int:
        """Of the products of a forward pass."""

    def plain(self) -> dict[str, Call]:
        """What the backends are held against; the first is compiled, too."""
        return {EAGER: partial(self.call, "reference")}

    def gradients(self, call: Call, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
        """The output and all gradients."""
        y = call(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    def runs(self, call: Call) -> dict[str, Callable[[], object]]:
        def forward() -> Tensor:
            with torch.no_grad():
                return call(*self.inputs)

        return dict(zip(PASSES, (forward, lambda: self.gradients(call, self.inputs, self.dy)), strict=True))

    def variants(self, compiled: bool) -> tuple[dict[str, Call], dict[str, str], list[str]]:
        """Variants that agree with the reference, why the others are not timed, and complaints of wrong ones."""
        found, missing, complaints = dict[str, Call](), dict[str, str](), list[str]()
        for name, call in self.plain().items():
            found[name] = call
            if name == EAGER and compiled:
                found[COMPILED] = torch.compile(call, dynamic=False)
        if not compiled:
            missing[COMPILED] = "left out by --no-compile"
        others = kernels.explain(self.op, self.inputs[0], backend="reference").others
        for name in kernels.BACKENDS[1:]:
            try:
                kernels.explain(self.op, self.inputs[0], backend=name)
            except ValueError:
                missing[f"m2clip {name}"] = others[name]
            else:
                found[f"m2clip {name}"] = partial(self.call, name)
        doubles = [tensor.detach().double().requires_grad_() for tensor in self.inputs]
        truth = self.gradients(partial(self.call, "reference"), doubles, self.dy.double())
        for name, call in list(found.items()):
            try:
                results = self.gradients(call, self.inputs, self.dy)
            except Exception as met:  # a compiler that is missing: told, not hidden
                missing[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
                del found[name]
                continue
            error = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, truth, strict=True))
            if not error <= self.tolerance[self.case.dtype]:
                missing[name] = f"wrong: error {error:.1e}"
                complaints.append(f"{self.case.name}: {name} is {missing[name]}")
                del found[name]
        return found, missing, complaints


def measure(problem: Problem, rounds: int, compiled: bool) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()
    device, passes = problem.inputs[0].device, {}
    ready, not_run, wrong = problem.variants(compiled)
    large = problem.inputs[0].nbytes > SMALL_BYTES
    before = overwritten_caches(device, CACHE_BYTES) if device.type == "cuda" and large else None
    for which, gemms in zip(PASSES, problem.products, strict=True):
        runs = {name: problem.runs(call)[which] for name, call in ready.items()}
        runs["floor"] = problem.floor_runs()[which]
        calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
        seconds = interleave(runs, rounds, device, calls=calls, before_turn=before)
        times: dict[str, Any] = {name: {"seconds": summary(taken)} for name, taken in seconds.items()}
        baselines = [name for name in (EAGER, COMPILED) if name in ready]
        for name in ready:
            times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
            times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
        flops = problem.forward_flops() * gemms // problem.products[0]
        passes[which] = {"flops": flops, "floor": {**times.pop("floor"), "gemms": gemms}, "variants": times}
    result = {**asdict(problem.case), "passes": passes, "not_run": not_run}
    if device.type == "cuda":
        both = {name: problem.runs(call)[PASSES[1]] for name, call in ready.items()}
        result["peak_memory_bytes"] = {name: peak_bytes(run, run, device) for name, run in both.items()}
    return result, wrong


def run(
    benchmark: str,
    description: str | None,
    problem: Callable[[Any, torch.device], Problem],
    cases: Mapping[str, Sequence[Any]],
    title: Callable[[Any], str],
) -> None:
    """The command of a benchmark.

    Args:
        benchmark: its name, and that of its JSON and picture. description: for --help.
        problem: of a case on a device.
        cases: by kind of device, "cpu" and "cuda".
        title: of a case in the JSON, one line.
    """
    names = dict.fromkeys(case.name for group in cases.values() for case in group)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=names)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, results, complaints, budget = torch.device(args.device), [], [], Budget(args.budget)
    rounds = budget.rounds(args.rounds)
    for case in cases[device.type]:
        if (not args.cases or case.name in args.cases) and budget.allows(case.name):
            compiled = not args.no_compile and budget.allows_compiling()
            result, wrong = measure(problem(case, device), rounds, compiled)
            show(result, title(result))
            results.append(result)
            complaints += wrong
    config = {"rounds": rounds, "compiled": not args.no_compile, "threads": torch.get_num_threads()}
    config["left_out"] = budget.left_out
    path = write_results(benchmark, device, {"config": config, "cases": results}, args.out)
    print(path)
    operation = f"{benchmark.removesuffix('_speed')}_adapter"
    print(loss_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"), operation, title))
    if complaints:
        sys.exit("\n".join(complaints))
