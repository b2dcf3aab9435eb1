"""The losses against plain PyTorch, torch.compile and fused linear cross-entropies: time of a call.

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --cases k400 pairs --quick --no-compile

All variants have the same inputs and take turns in one run. A variant that disagrees with the reference in double
precision is not timed, and the exit code is then 1. The floor is the matrix products alone: one forward, two more
backward, or one more where the decoder is frozen. Features are 512 wide and fp32. Writes loss_speed.json and
loss_speed.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import loss_plot
from benchmarks.adapter_table import digits, unit_for
from benchmarks.adapter_variants import PASSES
from benchmarks.loss_variants import CASES, COMPILED, DIM, EAGER, SCALE, TOLERANCE, Case, Loss, Problem, variants
from benchmarks.measure import calls_for, interleave, ratio, summary, write_results
from m2clip.commands.output import console, print_line, table

QUICK = ("k400", "pairs", "words")
TURN_SECONDS = 0.02


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help=f"3 rounds, cases {', '.join(QUICK)}")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.cases = min(args.rounds, 3), args.cases or list(QUICK)
    return args


def prepare(problem: Problem, compiled: bool) -> tuple[dict[str, Loss], dict[str, str], list[str]]:
    """Variants that agree with the reference, why the others are not timed, and complaints of those that are wrong."""
    found, not_run = variants(problem, compiled)
    truth, ready, wrong = problem.truth(), {}, []
    for name, loss in found.items():
        try:
            error = problem.worst_error(loss, truth)
        except Exception as met:  # a compiler that is missing, a library that lacks this case: told, not hidden
            not_run[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
            continue
        if error <= TOLERANCE:
            ready[name] = loss
        else:
            not_run[name] = f"wrong: error {error:.1e}"
            wrong.append(f"{problem.case.name}: {name} is {not_run[name]}")
    return ready, not_run, wrong


def time_pass(problem: Problem, ready: Mapping[str, Loss], which: str, rounds: int) -> dict[str, Any]:
    """Times of one pass of all variants and of the floor, and how they compare round by round."""
    device, backward = problem.device, which == PASSES[1]
    runs: dict[str, Callable[[], object]] = {name: problem.runs(loss)[which] for name, loss in ready.items()}
    runs["floor"] = problem.floor_runs()[which]
    calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
    seconds = interleave(runs, rounds, device, calls=calls)
    times: dict[str, Any] = {name: {"calls": calls[name], "seconds": summary(taken)} for name, taken in seconds.items()}
    for name in ready:
        times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
        baselines = [other for other in (EAGER, COMPILED) if other in ready]
        times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
    case = problem.case
    products = case.products[backward]
    floor = {**times.pop("floor"), "gemms": products}
    return {"flops": 2 * case.rows * case.columns * DIM * products, "floor": floor, "variants": times}


def measure(case: Case, device: torch.device, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()  # a case compiles from scratch, whatever came before it
    problem = Problem(case, device)
    ready, not_run, wrong = prepare(problem, not args.no_compile)
    passes = {which: time_pass(problem, ready, which, args.rounds) for which in PASSES}
    return {**asdict(case), "dim": DIM, "passes": passes, "not_run": not_run}, wrong


def show(result: Mapping[str, Any], title: str) -> None:
    """Print a case: spread is the distance of the 20th and 80th percentile over the median."""
    for which, numbers in result["passes"].items():
        unit, factor = unit_for(numbers)
        rows = []
        for name, own in (
            *numbers["variants"].items(),
            (f"floor: {numbers['floor']['gemms']} GEMMs", numbers["floor"]),
        ):
            middle, over = own["seconds"]["median"], own.get("speedup_over", {})
            spread = f"{100 * (own['seconds']['p80'] - own['seconds']['p20']) / middle:.0f} %"
            ratios = [f"{over[base]['median']:.2f}x" if base in over else "-" for base in (EAGER, COMPILED)]
            share = f"{100 * own['floor_fraction']['median']:.0f} %" if over else "-"
            rows.append([name, digits(middle * factor), spread, *ratios, share])
        print_line(f"\n{result['name']}, {which} in {unit}: {title}")
        console().print(table(("", "median", "spread", "vs\neager", "vs\ncompile", "of\nfloor"), rows, numbers=5))
    for name, reason in result["not_run"].items():
        print_line(f"{name}: not run, {reason}")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    cases, complaints = [], []
    for case in CASES:
        if args.cases and case.name not in args.cases:
            continue
        result, wrong = measure(case, device, args)
        show(result, loss_plot.title(result))
        cases.append(result)
        complaints += wrong
    config = {
        "rounds": args.rounds,
        "quick": args.quick,
        "compiled": not args.no_compile,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "logit_scale": SCALE,
    }
    path = write_results("loss_speed", device, {"config": config, "cases": cases}, args.out)
    picture = loss_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"{path}\n{picture}")
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
