"""bottleneck_adapter against plain PyTorch and torch.compile: time of a call.

    python benchmarks/bottleneck_speed.py
    python benchmarks/bottleneck_speed.py --cases text --no-compile

All variants have the same inputs and take turns in one run. A variant that disagrees with the reference in double
precision is not timed, and the exit code is then 1. The floor is the matrix products alone: two forward, four more
backward. On a GPU the caches are overwritten between calls, and peak memory of a forward and backward is counted.
Writes bottleneck_speed.json and bottleneck_speed.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of a tensor's norm


@dataclass(frozen=True)
class Case:
    name: str
    tokens: int
    dim: int
    width: int
    activation: str = "gelu"
    dtype: str = "float32"


CPU_CASES = (
    Case("text", 400 * 13, 512, 384),  # the prompts of Kinetics-400, cut to the longest
    Case("vision", 2 * 8 * 197, 768, 384),
    Case("vision-r64", 2 * 8 * 197, 768, 64),
    Case("vision-quick", 2 * 8 * 197, 768, 192, "quick_gelu"),
    Case("vision-bf16", 2 * 8 * 197, 768, 384, dtype="bfloat16"),
    Case("tiny", 16, 32, 16),
)
GPU_CASES = (
    Case("vision", 32 * 8 * 197, 768, 384, dtype="bfloat16"),
    Case("vision-r64", 32 * 8 * 197, 768, 64, dtype="bfloat16"),
    Case("text", 400 * 13, 512, 384, dtype="bfloat16"),
    Case("text-r64", 400 * 13, 512, 64, dtype="bfloat16"),
    Case("vision-quick", 32 * 8 * 197, 768, 192, "quick_gelu", "bfloat16"),
    Case("tiny", 16, 32, 16, dtype="bfloat16"),
    Case("vision-fp32", 32 * 8 * 197, 768, 384),
)
CASES = tuple({case.name: case for case in (*CPU_CASES, *GPU_CASES)}.values())
SMALL_BYTES = 2**20  # tokens below this are a measurement of the overhead of a call


class Problem:
    """Inputs of a case, all with a gradient, and what runs on them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens, dim, width, dtype = case.tokens, case.dim, case.width, getattr(torch, case.dtype)
        shapes = ((tokens, dim), (width, dim), (width,), (dim, width), (dim,), (tokens, dim))
        tensors = [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
        *self.inputs, self.dy = (tensor.to(device, dtype) for tensor in tensors)
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.case = case

    def call(self, backend: str, *inputs: Tensor) -> Tensor:
        return kernels.bottleneck_adapter(*inputs, activation=self.case.activation, backend=backend)

    def gradients(self, call: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
        """The output and all gradients."""
        y = call(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    def runs(self, call: Callable[..., Tensor]) -> dict[str, Callable[[], object]]:
        def forward() -> Tensor:
            with torch.no_grad():
                return call(*self.inputs)

        return dict(zip(PASSES, (forward, lambda: self.gradients(call, self.inputs, self.dy)), strict=True))

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        x, down, down_bias, up, up_bias = (tensor.detach() for tensor in self.inputs)
        hidden = torch.randn_like(x[:, :1]).expand(-1, len(down)).contiguous()

        def forward() -> None:
            torch.addmm(down_bias, x, down.t()), torch.addmm(up_bias, hidden, up.t())

        def backward() -> None:
            forward()
            self.dy @ up, self.dy.t() @ hidden, hidden @ down, hidden.t() @ x

        return dict(zip(PASSES, (forward, backward), strict=True))

    def variants(self, compiled: bool) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str], list[str]]:
        """Variants that agree with the reference, why the others are not timed, and complaints of wrong ones."""
        found: dict[str, Callable[..., Tensor]] = {EAGER: partial(self.call, "reference")}
        missing, complaints = {}, []
        if compiled:
            found[COMPILED] = torch.compile(found[EAGER], dynamic=False)
        else:
            missing[COMPILED] = "left out by --no-compile"
        others = kernels.explain("bottleneck_adapter", self.inputs[0], backend="reference").others
        for name in kernels.BACKENDS[1:]:
            try:
                kernels.explain("bottleneck_adapter", self.inputs[0], backend=name)
            except ValueError:
                missing[f"m2clip {name}"] = others[name]
            else:
                found[f"m2clip {name}"] = partial(self.call, name)
        doubles = [tensor.detach().double().requires_grad_() for tensor in self.inputs]
        truth = self.gradients(found[EAGER], doubles, self.dy.double())
        for name, call in list(found.items()):
            try:
                results = self.gradients(call, self.inputs, self.dy)
            except Exception as met:  # a compiler that is missing: told, not hidden
                missing[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
                del found[name]
                continue
            error = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, truth, strict=True))
            if error > TOLERANCE[self.case.dtype]:
                missing[name] = f"wrong: error {error:.1e}"
                complaints.append(f"{self.case.name}: {name} is {missing[name]}")
                del found[name]
        return found, missing, complaints


def title(case: Any) -> str:
    """A case in one line."""
    return f"{case['tokens']} tokens, D={case['dim']} R={case['width']} {case['activation']} {case['dtype']}"


def measure(case: Case, device: torch.device, rounds: int, compiled: bool) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()
    problem, passes = Problem(case, device), {}
    ready, not_run, wrong = problem.variants(compiled)
    large = problem.inputs[0].nbytes > SMALL_BYTES
    before = overwritten_caches(device, CACHE_BYTES) if device.type == "cuda" and large else None
    for which, gemms in zip(PASSES, (2, 6), strict=True):
        runs = {name: problem.runs(call)[which] for name, call in ready.items()}
        runs["floor"] = problem.floor_runs()[which]
        calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
        seconds = interleave(runs, rounds, device, calls=calls, before_turn=before)
        times: dict[str, Any] = {name: {"seconds": summary(taken)} for name, taken in seconds.items()}
        baselines = [name for name in (EAGER, COMPILED) if name in ready]
        for name in ready:
            times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
            times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
        flops = 2 * case.tokens * case.dim * case.width * gemms
        passes[which] = {"flops": flops, "floor": {**times.pop("floor"), "gemms": gemms}, "variants": times}
    result = {**asdict(case), "passes": passes, "not_run": not_run}
    if device.type == "cuda":
        both = {name: problem.runs(call)[PASSES[1]] for name, call in ready.items()}
        result["peak_memory_bytes"] = {name: peak_bytes(run, run, device) for name, run in both.items()}
    return result, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, cases, complaints, budget = torch.device(args.device), [], [], Budget(args.budget)
    rounds = budget.rounds(args.rounds)
    for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
        if (not args.cases or case.name in args.cases) and budget.allows(case.name):
            result, wrong = measure(case, device, rounds, not args.no_compile and budget.allows_compiling())
            show(result, title(result))
            cases.append(result)
            complaints += wrong
    config = {"rounds": rounds, "compiled": not args.no_compile, "threads": torch.get_num_threads()}
    config["left_out"] = budget.left_out
    path = write_results("bottleneck_speed", device, {"config": config, "cases": cases}, args.out)
    print(path)
    print(loss_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"), "bottleneck_adapter", title))
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
