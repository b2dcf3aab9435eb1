"""Clips per second of M2-CLIP's forward pass, ours against the authors' formulation, at several batch sizes.

    python benchmarks/inference_speed.py --clip ViT-B-16-quickgelu --frames 8 --batches 1 4

All variants have the same weights and clips, and the run stops if their similarities differ. The authors' formulation
gets its class texts computed beforehand; ours computes their last layer anew in every pass, as model(video) does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import model_speed, pictures
from benchmarks.measure import Budget, calls_for, interleave, ratio, reason, summary, write_results
from benchmarks.model_speed import chosen, set_dtype
from benchmarks.tables import show_missing
from benchmarks.train_variants import AUTHORS, TOLERANCE, VARIANTS, Problem
from m2clip.commands.shared.output import console, table

BATCHES = {"cuda": (1, 8, 32), "cpu": (1, 4)}
TURN_SECONDS = 0.05


def arguments() -> argparse.Namespace:
    parser = model_speed.parser(__doc__, rounds=10)
    parser.add_argument("--batches", type=int, nargs="+", help="clips a pass (default: 1 4, on a GPU 1 8 32)")
    args = parser.parse_args()
    kind = set_dtype(args)
    args.batches = args.batches or list(BATCHES[kind])
    return args


def prepare(
    problem: Problem, names: list[str], budget: Budget, not_run: dict[str, str], tolerance: float
) -> dict[str, Callable[[], Tensor]]:
    """Forward passes of the variants, each called once and compared with the first.

    Raises:
        SystemExit: similarities that differ.
    """
    ready: dict[str, Callable[[], Tensor]] = {}
    expected: Tensor | None = None
    for name in names:
        if VARIANTS[name].compiled and not budget.allows_compiling():
            not_run[name] = "no time left for torch.compile"
            continue
        try:
            run = problem.forward(name)
            found = run().float()
        except Exception as error:
            if problem.device.type == "cpu":
                raise
            not_run[name] = reason(error)
            continue
        expected = found if expected is None else expected
        difference = ((found - expected).norm() / expected.norm()).item()
        if not difference <= tolerance:
            sys.exit(f"{name} does not compute the same: similarities differ by {difference:.1e}")
        ready[name] = run
    return ready


def time_batch(problem: Problem, ready: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, Any]:
    """Times of all variants at one batch size."""
    batch = len(problem.video)
    calls = {name: calls_for(run, problem.device, TURN_SECONDS) for name, run in ready.items()}
    seconds = interleave(ready, rounds, problem.device, calls=calls)
    return {
        "batch": batch,
        "variants": {
            name: {
                "seconds": summary(values),
                "throughput": batch / summary(values)["median"],
                **({"speedup": ratio(seconds[AUTHORS], values)} if AUTHORS in seconds and name != AUTHORS else {}),
            }
            for name, values in seconds.items()
        },
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device, budget = torch.device(args.device), Budget(args.budget)
    names, not_run = chosen(args)
    cases = []
    settings = {name: getattr(args, name) for name in ("clip", "frames", "classes", "dtype")}

    def save() -> Path:
        content = {"setting": settings, "cases": cases, "not_run": not_run, "left_out": budget.left_out}
        return write_results("inference_speed", device, content, args.out)

    for batch in args.batches:
        if not budget.allows(f"batch {batch}"):
            continue
        problem = Problem(args.clip, args.frames, batch, args.classes, device, args.dtype)
        missing: dict[str, str] = {}
        ready = prepare(problem, names, budget, missing, TOLERANCE[args.dtype])
        cases.append({**time_batch(problem, ready, budget.rounds(args.rounds)), "not_run": missing})
        save()
    path = save()
    results = json.loads(path.read_text())
    show(results)
    print(f"{path}\n{pictures.draw(results, path.with_suffix('.png'))}")


def show(results: dict[str, Any]) -> None:
    """Print the table: clips per second, a column for each batch size."""
    setting, cases = results["setting"], results["cases"]

    def cell(own: dict[str, Any] | None) -> str:
        if own is None:
            return "-"
        return f"{own['throughput']:.1f}" + (f" ({own['speedup']['median']:.2f}x)" if "speedup" in own else "")

    names = dict.fromkeys(name for case in cases for name in case["variants"])
    rows = [(name, *(cell(case["variants"].get(name)) for case in cases)) for name in names]
    what = f"{setting['clip']}, {setting['frames']} frames, {setting['dtype']}"
    print(f"clips per second on {results['device']}, {what}; in brackets over the authors'")
    console().print(table(("", *(f"batch {case['batch']}" for case in cases)), rows, numbers=len(cases)))
    show_missing(results["not_run"])
    for case in cases:
        show_missing({f"{name}, batch {case['batch']}": why for name, why in case["not_run"].items()})
    if results["left_out"]:
        print(f"no time left for {', '.join(results['left_out'])}")


if __name__ == "__main__":
    main()
