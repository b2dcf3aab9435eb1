"""The losses against plain PyTorch, torch.compile and fused linear cross-entropies: time of a call.

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --cases k400 pairs --quick --no-compile

All variants have the same inputs and take turns in one run. A variant that disagrees with the reference in double
precision is not timed, and the exit code is then 1. The floor is the matrix products alone: one forward, two more
backward, or one more where the decoder is frozen. Features are 512 wide and fp32. On a GPU every variant is timed once
more as a CUDA graph, recorded once and replayed: without any work of the processor. Writes loss_speed.json and
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
from benchmarks.measure import Budget, calls_for, interleave, launches, ratio, recorded, summary, waits, write_results
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
    Budget.add_argument(parser)
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
    device, case = problem.device, problem.case
    runs: dict[str, Callable[[], object]] = {name: problem.runs(loss)[which] for name, loss in ready.items()}
    runs["floor"] = problem.floor_runs()[which]
    calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
    seconds = interleave(runs, rounds, device, calls=calls)
    times: dict[str, Any] = {name: {"calls": calls[name], "seconds": summary(taken)} for name, taken in seconds.items()}
    baselines = [other for other in (EAGER, COMPILED) if other in ready]
    for name in ready:
        times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
        times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
    if device.type == "cuda" and case.op != "masked_word_loss":  # how many words are masked is read by the processor
        graphs = {name: recorded(runs[name]) for name in ready if name.startswith("m2clip") or name in baselines}
        calls = {name: calls_for(graph, device, TURN_SECONDS) for name, graph in graphs.items()}
        for name, taken in interleave(graphs, rounds, device, calls=calls).items():
            times[name]["graph_seconds"] = summary(taken)
    if device.type == "cuda":
        for name in ready:
            times[name]["launches"], times[name]["waits"] = launches(runs[name]), waits(runs[name])
    products = case.products[which == PASSES[1]]
    floor = {**times.pop("floor"), "gemms": products}
    return {"flops": 2 * case.rows * case.columns * DIM * products, "floor": floor, "variants": times}


def measure(
    case: Case, device: torch.device, args: argparse.Namespace, budget: Budget
) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()  # a case compiles from scratch, whatever came before it
    problem = Problem(case, device)
    ready, not_run, wrong = prepare(problem, not args.no_compile and budget.allows_compiling())
    passes = {which: time_pass(problem, ready, which, budget.rounds(args.rounds)) for which in PASSES}
    return {**asdict(case), "dim": DIM, "passes": passes, "not_run": not_run}, wrong


def show(result: Mapping[str, Any], title: str) -> None:
    """Print a case: spread is the distance of the 20th and 80th percentile over the median."""
    for which, numbers in result["passes"].items():
        unit, factor = unit_for(numbers)
        graphs = any("graph_seconds" in own for own in numbers["variants"].values())
        rows = []
        for name, own in (
            *numbers["variants"].items(),
            (f"floor: {numbers['floor']['gemms']} GEMMs", numbers["floor"]),
        ):
            middle, over = own["seconds"]["median"], own.get("speedup_over", {})
            spread = f"{100 * (own['seconds']['p80'] - own['seconds']['p20']) / middle:.0f} %"
            ratios = [f"{over[base]['median']:.2f}x" if base in over else "-" for base in (EAGER, COMPILED)]
            share = f"{100 * own['floor_fraction']['median']:.0f} %" if over else "-"
            graph = [digits(own["graph_seconds"]["median"] * factor) if "graph_seconds" in own else "-"]
            rows.append([name, digits(middle * factor), spread, *ratios, share, *(graph if graphs else [])])
        print_line(f"\n{result['name']}, {which} in {unit}: {title}")
        header = ("", "median", "spread", "vs\neager", "vs\ncompile", "of\nfloor", *(["as\ngraph"] if graphs else []))
        console().print(table(header, rows, numbers=len(header) - 1))
    for name, reason in result["not_run"].items():
        print_line(f"{name}: not run, {reason}")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    cases, complaints, budget = [], [], Budget(args.budget)
    for case in CASES:
        if (args.cases and case.name not in args.cases) or not budget.allows(case.name):
            continue
        result, wrong = measure(case, device, args, budget)
        show(result, loss_plot.title(result))
        cases.append(result)
        complaints += wrong
    config = {
        "rounds": budget.rounds(args.rounds),
        "left_out": budget.left_out,
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
