"""One training step of M2-CLIP, ours against the authors' formulation: seconds, interleaved, and peak memory.

    python benchmarks/train_speed.py --clip ViT-B-16-quickgelu --frames 8 --batch 2 --rounds 5

All variants have the same weights, clips, labels and masked words, and the run stops if their losses differ. A step is
forward, backward and AdamW. "m2clip reference" runs the adapters and losses in plain PyTorch, "m2clip" on the backends
that are chosen by default. On a GPU everything is in bf16, the authors' adapters by autocast, and there are more
variants: backends by name, torch.compile, CUDA graphs.

Memory is what a process that only ever ran that variant would hold: on a CPU the resident set of such a process, on a
GPU what the allocator counted of shared, own and passing tensors. The share of the matmul peak counts the FLOPs that
our step needs, frozen weights' gradients not among them, for every variant; the peak is a large product's in the same
run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import model_speed, pictures
from benchmarks.measure import (
    Budget,
    interleave,
    ratio,
    reason,
    summary,
    synchronise,
    write_results,
)
from benchmarks.memory import peak_resident_gb, resident_gb
from benchmarks.model_speed import chosen, set_dtype
from benchmarks.tables import digits, show_missing, spread
from benchmarks.train_variants import AUTHORS, REFERENCE, TOLERANCE, VARIANTS, Problem
from m2clip.commands.shared.output import console, table

GEMM_ROWS = {"cuda": 8192, "cpu": 1024}  # of three square matrices: the matmul peak
GEMM_CALLS = 10
GEMM = "large matmul"
BATCH = {"cuda": 32, "cpu": 2}


def arguments() -> argparse.Namespace:
    parser = model_speed.parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, help="clips per step (default: 2, on a GPU 32)")
    parser.add_argument(
        "--memory-of", choices=tuple(VARIANTS), help="run only this variant and print its memory as JSON"
    )
    args = parser.parse_args()
    kind = set_dtype(args)
    args.batch = args.batch or BATCH[kind]
    return args


class Run:
    """The variants that are ready to be timed, and what was found out about each on the way."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device, self.budget = args, torch.device(args.device), Budget(args.budget)
        self.problem = Problem(args.clip, args.frames, args.batch, args.classes, self.device, args.dtype)
        self.shared_gb = self.allocated_gb()
        self.steps: dict[str, Callable[[], Tensor]] = {}
        self.losses: dict[str, float] = {}
        self.first_step_seconds: dict[str, float] = {}
        self.memory: dict[str, dict[str, float]] = {}
        self.flops: int | None = None

    def allocated_gb(self) -> float:
        return torch.cuda.memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def add(self, name: str) -> None:
        """Build a variant and take its first steps: text cache, memory pools, compilation, recording."""
        before = self.allocated_gb()
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        step = self.problem.step(name)
        loss = step().item()
        self.first_step_seconds[name] = time.perf_counter() - start
        if self.device.type == "cuda":
            self.memory[name] = self._gpu_memory(step, before, VARIANTS[name].graphed)
        else:
            self.memory[name] = self._cpu_memory(name)
        if name == REFERENCE:
            self.flops = count_flops(step)
        self.losses[name], self.steps[name] = loss, step

    def _gpu_memory(self, step: Callable[[], Tensor], before: float, graphed: bool) -> dict[str, float]:
        if not graphed:  # a replay allocates nothing: its memory is that of the recording
            torch.cuda.reset_peak_memory_stats(self.device)
            step()
        synchronise(self.device)
        peak, held = torch.cuda.max_memory_allocated(self.device) / 2**30, self.allocated_gb()
        own = held - before
        steps = peak - held
        return {"peak_gb": self.shared_gb + own + steps, "before_steps_gb": self.shared_gb + own, "steps_gb": steps}

    def _cpu_memory(self, name: str) -> dict[str, float]:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def results(self, not_run: dict[str, str]) -> dict[str, Any]:
        """Time everything that is ready and say what came out."""
        args, rows = self.args, GEMM_ROWS[self.device.type]
        a, b, out = (torch.randn(rows, rows, device=self.device).to(getattr(torch, args.dtype)) for _ in range(3))
        runs = {**self.steps, GEMM: lambda: torch.mm(a, b, out=out)}
        calls = {name: GEMM_CALLS if name == GEMM else 1 for name in runs}
        seconds = interleave(runs, self.budget.rounds(args.rounds), self.device, calls=calls)
        gemm = summary(seconds.pop(GEMM))
        peak = 2 * rows**3 / gemm["median"]
        times = {name: summary(values) for name, values in seconds.items()}
        others = [name for name in seconds if name != AUTHORS and AUTHORS in seconds]
        settings = {name: getattr(args, name) for name in ("clip", "frames", "batch", "classes", "dtype")}
        return {
            "setting": {**settings, "preset": "official"},
            "losses_before": self.losses,
            "seconds": times,
            "clips_per_second": {name: args.batch / time["median"] for name, time in times.items()},
            "first_step_seconds": {name: self.first_step_seconds[name] for name in times},
            "speedup": {name: ratio(seconds[AUTHORS], seconds[name]) for name in others},
            "memory": self.memory,
            "memory_ratio": {
                name: {key: self.memory[name][key] / self.memory[AUTHORS][key] for key in ("peak_gb", "steps_gb")}
                for name in others
            },
            "step_flops": self.flops,
            "matmul_peak": {"flops_per_second": peak, "rows": rows, "seconds": gemm},
            "peak_fraction": {
                name: self.flops / time["median"] / peak for name, time in times.items() if self.flops is not None
            },
            "not_run": not_run,
        }

    def check(self) -> None:
        """End the run where a variant computes something else."""
        expected = next(iter(self.losses.values()))
        if any(not abs(loss - expected) <= TOLERANCE[self.args.dtype] * abs(expected) for loss in self.losses.values()):
            sys.exit(f"the variants do not compute the same: losses {self.losses}")


def count_flops(step: Callable[[], Any]) -> int:
    """FLOPs of a step's products; a frozen weight's gradient, which nobody computes, is not among them."""

    def conv_backward(slope: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
        needed = rest[-1]  # gradients of x, weight and bias; PyTorch's own formula knows no groups
        return 2 * math.prod(slope) * math.prod(weight[1:]) * sum(needed[:2])

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: conv_backward}) as counter:
        step()
    return counter.get_total_flops()


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Memory of a process on the CPU that builds one variant and takes two steps."""
    problem = Problem(args.clip, args.frames, args.batch, args.classes, torch.device(args.device), args.dtype)
    step = problem.step(args.memory_of)
    before = resident_gb()
    for _ in range(2):
        step()
    peak = peak_resident_gb()
    return {"peak_gb": peak, "before_steps_gb": before, "steps_gb": peak - before}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory(args)))
        return
    names, not_run = chosen(args)
    run = Run(args)
    for name in names:
        if VARIANTS[name].compiled and not run.budget.allows_compiling():
            not_run[name] = "no time left for torch.compile"
        elif not run.budget.allows(name):
            not_run[name] = "no time left"
        else:
            if VARIANTS[name].compiled and run.steps:
                report(run, not_run)  # a compiler may take longer than is left: what was found so far is kept
            attempt(run, name, not_run)
    if not run.steps:
        sys.exit("no variant could be run: " + "; ".join(f"{name}: {reason}" for name, reason in not_run.items()))
    path = report(run, not_run)
    results = json.loads(path.read_text())
    show(results)
    print(f"{path}\n{pictures.draw(results, path.with_suffix('.png'))}")


def attempt(run: Run, name: str, not_run: dict[str, str]) -> None:
    """Make a variant ready, or note why that failed; on a CPU a failure ends the run."""
    try:
        run.add(name)
    except Exception as error:
        if run.device.type == "cpu":
            raise
        not_run[name] = reason(error)
        torch.cuda.empty_cache()


def report(run: Run, not_run: dict[str, str]) -> Path:
    """Check the losses, time all that is ready and write the JSON."""
    run.check()
    return write_results("train_speed", run.device, run.results(not_run), run.args.out)


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    setting, memory = results["setting"], results["memory"]
    rows = []
    for name, seconds in results["seconds"].items():
        share, faster = results["peak_fraction"].get(name), results["speedup"].get(name, {}).get("median", 1.0)
        rows.append(
            (
                name,
                digits(seconds["median"]),
                spread(seconds),
                f"{memory[name]['peak_gb']:.2f}",
                f"{memory[name]['steps_gb']:.2f}",
                "-" if share is None else f"{100 * share:.0f} %",
                f"{results['first_step_seconds'][name]:.1f}",
                f"{faster:.2f}x",
            )
        )
    what = f"{setting['batch']} clips of {setting['frames']} frames, {setting['dtype']}"
    print(f"one training step on {results['device']}, {setting['clip']}, {what}")
    header = ("", "seconds", "spread", "peak\nGB", "of\nstep", "of\nGEMM", "first\nstep", "vs\nauthors")
    console().print(table(header, rows, numbers=len(header) - 1))
    show_missing(results["not_run"])


if __name__ == "__main__":
    main()
