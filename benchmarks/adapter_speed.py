"""The TED-Adapter against the authors' formulation, torch.compile, and the bare GEMMs: time and peak memory.

    python benchmarks/adapter_speed.py
    python benchmarks/adapter_speed.py --shapes b16-r384 tiny --quick --no-compile

All variants have the same weights and tokens and take turns in one run; between turns the caches are overwritten, on a
GPU between calls. A variant that disagrees with the reference in double precision is not timed, and the exit code is
then 1. The floor is the GEMMs alone, two forward and four more backward. The copy is of a buffer larger than the
caches; a variant's share of its bandwidth counts the bytes that must move: x in and y out, backward dy and x in and dx
out, and the weights. On a GPU a large square GEMM is timed as well: with it and the copy, the least time is the larger
of FLOPs over its rate and bytes over the bandwidth. Memory is the peak of one forward and backward above inputs and
weights, on a CPU measured for each variant in a process of its own. Writes adapter_speed.json and adapter_speed.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import adapter_plot, adapter_table
from benchmarks.adapter_variants import (
    AUTHORS,
    AUTHORS_AUTOTUNED,
    AUTHORS_NO_CUDNN,
    COMPILED,
    PASSES,
    TOLERANCE,
    Case,
    Problem,
    Variant,
    backend_reasons,
    builders,
    floor_runs,
    plans_of,
    worst_error,
)
from benchmarks.measure import Budget, calls_for, interleave, overwritten_caches, ratio, summary, write_results
from benchmarks.memory import in_own_process, peak_bytes

B16, B32, L14 = ((14, 14), 768), ((7, 7), 768), ((16, 16), 1024)
TINY = Case("tiny", 1, 2, (2, 2), 32, 16)  # what is left is the overhead of a call
CPU_CASES = (
    Case("b16-r384", 2, 8, *B16, 384),
    Case("b16-r64", 2, 8, *B16, 64),
    Case("b16-t16", 2, 16, *B16, 384),
    Case("b16-shared", 2, 8, *B16, 384, shared=True),
    Case("b32", 2, 8, *B32, 384),
    Case("l14", 1, 8, *L14, 384),
    TINY,
    Case("b16-bf16", 2, 8, *B16, 384, torch.bfloat16),
)
GPU_CASES = (
    Case("b16-r384", 32, 8, *B16, 384, torch.bfloat16),
    Case("b16-r64", 32, 8, *B16, 64, torch.bfloat16),
    Case("b16-t16", 16, 16, *B16, 384, torch.bfloat16),
    Case("b16-shared", 32, 8, *B16, 384, torch.bfloat16, shared=True),
    Case("b32", 32, 8, *B32, 384, torch.bfloat16),
    Case("l14", 16, 8, *L14, 384, torch.bfloat16),
    replace(TINY, dtype=torch.bfloat16),
    Case("b16-fp32", 32, 8, *B16, 384),
)
MAIN = "b16-r384"
QUICK = (MAIN, "tiny")
CACHE_BYTES = 128 * 2**20  # more than the last-level cache of today's processors and GPUs
LARGE_COPY, LARGE_GEMM = 2**30, 8192  # bytes, and rows of three square matrices: a GPU's ceilings
TURN_SECONDS = 0.02
SMALL_BYTES = 2**20  # tokens below this are a measurement of the overhead of a call


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=[str(dtype).removeprefix("torch.") for dtype in TOLERANCE])
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="default: all of the device's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help=f"3 rounds, shapes {' and '.join(QUICK)}, no max-autotune")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave the torch.compile variants out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurement out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    parser.add_argument("--memory-of", metavar="VARIANT", help="print only this variant's peak bytes as JSON")
    args = parser.parse_args()
    if args.quick:
        args.rounds = min(args.rounds, 3)
        args.shapes = args.shapes or list(QUICK)
    known = {case.name: case for case in (CPU_CASES if args.device == "cpu" else GPU_CASES)}
    unknown = set(args.shapes or ()) - known.keys()
    if unknown:
        parser.error(f"unknown shape {sorted(unknown)[0]!r}; choose from {', '.join(known)}")
    args.cases = [known[name] for name in args.shapes or known]
    if args.dtype:
        args.cases = [replace(case, dtype=getattr(torch, args.dtype)) for case in args.cases]
    return args


def prepare(
    problem: Problem, args: argparse.Namespace, budget: Budget
) -> tuple[dict[str, Variant], dict[str, str], list[str]]:
    """Variants that agree with the reference, why the others are not timed, and complaints of those that are wrong."""
    found, not_run = builders(problem.device, not args.no_compile, problem)
    if args.quick and found.pop(AUTHORS_AUTOTUNED, None):
        not_run[AUTHORS_AUTOTUNED] = "left out by --quick"
    late = () if budget.allows_compiling() else COMPILED
    if budget.seconds is not None and problem.case.name != MAIN:
        late = late or (AUTHORS_AUTOTUNED,)
    for name in late:
        if found.pop(name, None):
            not_run[name] = "left out by --budget"
    truth, ready, wrong = problem.truth(), {}, []
    for name, build in found.items():
        try:
            variant = build(problem)
            tensor, error = worst_error(variant, problem, truth)
        except (
            Exception
        ) as problem_met:  # a compiler that is missing, a backend that lacks this shape: told, not hidden
            not_run[name] = f"{type(problem_met).__name__}: {str(problem_met).strip().splitlines()[0]}"
            continue
        if error <= TOLERANCE[problem.case.dtype]:
            ready[name] = variant
        else:
            not_run[name] = f"wrong: error {error:.1e} of {tensor}"
            wrong.append(f"{problem.case.name}: {name} is {not_run[name]}")
    return ready, not_run, wrong


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Callable[[], Any]], int, int]:
    """What runs at a device's limits, the copy's bytes, read and written, and the product's FLOPs."""
    size = LARGE_COPY if device.type == "cuda" else CACHE_BYTES
    source, target = torch.ones(2, size, dtype=torch.uint8, device=device)
    runs: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    if device.type == "cuda":
        a, b, out = (torch.randn(LARGE_GEMM, LARGE_GEMM, device=device).to(dtype) for _ in range(3))
        runs["gemm"] = lambda: torch.mm(a, b, out=out)
    return runs, 2 * size, 2 * LARGE_GEMM**3


def time_pass(problem: Problem, ready: dict[str, Variant], which: str, rounds: int) -> dict[str, Any]:
    """Times of one pass of all variants, the floor and the ceilings, and how they compare round by round."""
    device, case, backward = problem.device, problem.case, which == PASSES[1]
    runs: dict[str, Callable[[], Any]] = {name: variant.runs()[which] for name, variant in ready.items()}
    runs["floor"] = floor_runs(problem)[which]
    limits, copied, multiplied = ceilings(device, case.dtype)
    runs |= limits
    # A CPU's turn on large tokens is one call, which starts with cold caches. Small ones and those on a GPU get many,
    # as in training, where the processor runs ahead of the GPU.
    small = problem.x.nbytes <= SMALL_BYTES
    turn = 0.0 if device.type == "cpu" and not small else TURN_SECONDS
    calls = {name: calls_for(run, device, turn) for name, run in runs.items()}
    # On a GPU small tokens stay in the cache, as in a network: what is measured there is the overhead of a call.
    before = None if device.type == "cuda" and small else overwritten_caches(device, CACHE_BYTES)
    seconds = interleave(runs, rounds, device, calls=calls, before_turn=before)
    times: dict[str, Any] = {name: {"calls": calls[name], "seconds": summary(taken)} for name, taken in seconds.items()}
    bandwidth = copied / times["copy"]["seconds"]["median"]
    best = {}
    for title, names in (("authors", (AUTHORS, AUTHORS_NO_CUDNN)), ("torch.compile", COMPILED)):
        contenders = [name for name in names if name in ready]
        if contenders:
            best[title] = min(contenders, key=lambda name: times[name]["seconds"]["median"])
    least, flops = case.least_bytes(backward), case.flops(backward)
    result = {"flops": flops, "least_bytes": least, "best": best}
    result["copy"] = {**times.pop("copy"), "bytes": copied, "bandwidth_gb_s": bandwidth / 1e9}
    if "gemm" in times:
        rate = multiplied / times["gemm"]["seconds"]["median"]
        result["gemm"] = {**times.pop("gemm"), "flops": multiplied, "throughput_tflop_s": rate / 1e12}
        result["least_seconds"] = max(flops / rate, least / bandwidth)
    for name in ready:
        own = times[name]
        own["floor_fraction"] = ratio(seconds["floor"], seconds[name])
        own["copy_fraction"] = least / bandwidth / own["seconds"]["median"]
        if "least_seconds" in result:
            own["least_fraction"] = result["least_seconds"] / own["seconds"]["median"]
        own["speedup_over"] = {title: ratio(seconds[other], seconds[name]) for title, other in best.items()}
    result["floor"] = {**times.pop("floor"), "gemms": 6 if backward else 2}
    return {**result, "variants": times}


def measure_memory(problem: Problem, name: str, variant: Variant) -> tuple[int | None, str]:
    """Peak bytes of one forward and backward of a variant, or why they are not known."""
    if problem.device.type == "cuda":
        if name == AUTHORS_AUTOTUNED:
            return None, "CUDA graphs keep a pool of their own"
        return peak_bytes(variant.backward, variant.backward, problem.device), ""
    if problem.x.nbytes < SMALL_BYTES:
        return None, "too little to count in resident pages"
    own = ["--device", str(problem.device), "--shapes", problem.case.name, "--memory-of", name]
    found, reason = in_own_process([__file__, *sys.argv[1:], *own])
    return found.get("peak_bytes"), reason


def memory_of(name: str, case: Case, device: torch.device) -> int:
    """Peak bytes of one forward and backward of a variant, in this process."""
    problem = Problem(case, device)
    build = builders(device, True, problem)[0][name]
    run = build(problem).backward
    if name in COMPILED:
        return peak_bytes(run, run, device)  # compiling takes memory itself; compiled code keeps no workspace
    return peak_bytes(run, build(Problem(replace(TINY, dtype=case.dtype), device)).backward, device)


def describe(case: Case) -> dict[str, Any]:
    return {
        "clips": case.clips,
        "frames": case.frames,
        "grid": list(case.grid),
        "class_token": True,
        "dim": case.dim,
        "width": case.width,
        "projections": "shared" if case.shared else "separate",
        "dtype": str(case.dtype).removeprefix("torch."),
        "tokens": case.tokens,
    }


def measure(
    case: Case, device: torch.device, args: argparse.Namespace, budget: Budget
) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()  # a case compiles from scratch, whatever came before it
    problem = Problem(case, device)
    ready, not_run, wrong = prepare(problem, args, budget)
    passes = {which: time_pass(problem, ready, which, budget.rounds(args.rounds)) for which in PASSES}
    memory: dict[str, int] = {}
    unknown: dict[str, str] = {}
    for name, variant in () if args.no_memory else ready.items():
        peak, reason = measure_memory(problem, name, variant)
        if peak is None:
            unknown[name] = reason
        else:
            memory[name] = peak
    result = {"name": case.name, "shape": describe(case), "passes": passes, "peak_memory_bytes": memory}
    backends = [name for name, reason in backend_reasons().items() if not reason and name != "reference"]
    result["plans"] = {f"m2clip {name}": plan[0] for name in backends if (plan := plans_of(problem, name))}
    return {**result, "memory_unknown": unknown, "not_run": not_run}, wrong


def main() -> None:
    args = arguments()
    budget = Budget(args.budget)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 in every variant, as it is in matrix products by default
    device = torch.device(args.device)
    if args.memory_of:
        print(json.dumps({"peak_bytes": memory_of(args.memory_of, args.cases[0], device)}))
        return
    cases, complaints = [], []
    for case in args.cases:
        if not budget.allows(case.name):
            continue
        result, wrong = measure(case, device, args, budget)
        adapter_table.show(result)
        cases.append(result)
        complaints += wrong
    config = {
        "rounds": budget.rounds(args.rounds),
        "quick": args.quick,
        "compiled": not args.no_compile,
        "threads": torch.get_num_threads(),
        "cache_bytes_overwritten": CACHE_BYTES,
        "left_out": budget.left_out,
    }
    path = write_results("adapter_speed", device, {"config": config, "cases": cases}, args.out)
    picture = adapter_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"{path}\n{picture}")
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
