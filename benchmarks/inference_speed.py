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

from benchmarks import model_speed
from benchmarks.measure import Budget, calls_for, interleave, ratio, summary, write_results
from benchmarks.model_speed import chosen, set_dtype, shade, told
from benchmarks.train_variants import AUTHORS, TOLERANCE, VARIANTS, Problem
from m2clip.plot_parts import INK, figure, save

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
            not_run[name] = told(error)
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
    for batch in args.batches:
        if not budget.allows(f"batch {batch}"):
            continue
        problem = Problem(args.clip, args.frames, batch, args.classes, device, args.dtype)
        missing: dict[str, str] = {}
        ready = prepare(problem, names, budget, missing, TOLERANCE[args.dtype])
        cases.append({**time_batch(problem, ready, budget.rounds(args.rounds)), "not_run": missing})
    settings = {name: getattr(args, name) for name in ("clip", "frames", "classes", "dtype")}
    content = {"setting": settings, "cases": cases, "not_run": not_run, "left_out": budget.left_out}
    path = write_results("inference_speed", device, content, args.out)
    results = json.loads(path.read_text())
    show(results)
    print(path)
    print(draw(results, path.with_suffix(".png")))


def show(results: dict[str, Any]) -> None:
    """Print the table: clips per second, a line a variant and a column a batch size."""
    setting, cases = results["setting"], results["cases"]
    print(
        f"clips a second on {results['device']}, {setting['clip']}, {setting['frames']} frames, {setting['dtype']}; "
        "in brackets over the authors'"
    )
    print(f"{'':29}" + "".join(f"{'batch ' + str(case['batch']):>20}" for case in cases))
    for name in variants_of(results):
        row = ""
        for case in cases:
            own = case["variants"].get(name)
            faster = "" if own is None or "speedup" not in own else f" ({own['speedup']['median']:.2f}x)"
            row += f"{'' if own is None else format(own['throughput'], '.1f') + faster:>20}"
        print(f"{name:29}{row}")
    for name, reason in results["not_run"].items():
        print(f"{name}: not run, {reason}")
    for case in cases:
        for name, reason in case["not_run"].items():
            print(f"{name}, batch {case['batch']}: not run, {reason}")
    if results["left_out"]:
        print(f"no time left for {', '.join(results['left_out'])}")


def variants_of(results: dict[str, Any]) -> list[str]:
    """Variants that were timed at any batch size, in the order of the tables."""
    return [name for name in VARIANTS if any(name in case["variants"] for case in results["cases"])]


def draw(results: dict[str, Any], path: Path) -> Path:
    """Draw inference_speed.json into a PNG, a panel a batch size; returns its path."""
    setting, cases, names = results["setting"], results["cases"], variants_of(results)
    with figure(max(9.0, 3.2 * len(cases)), 1.2 + 0.4 * len(names)) as drawn:
        panels = drawn.subplots(1, max(1, len(cases)), squeeze=False)[0]
        for axes, case in zip(panels, cases, strict=True):
            for place, name in enumerate(names):
                own = case["variants"].get(name)
                if own is None:
                    continue
                axes.barh(place, own["throughput"], height=0.68, color=shade(name))
                axes.annotate(f" {own['throughput']:.1f}", (own["throughput"], place), va="center", fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlabel(f"clips a second, {case['batch']} at a time", fontsize=8, labelpad=1)
            axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
            axes.tick_params(length=0, labelsize=8)
            axes.spines[["left"]].set_visible(False)
            axes.set_yticks(range(len(names)) if axes is panels[0] else [])
        panels[0].set_yticks(range(len(names)), names, color=INK, fontsize=8.5)
        drawn.suptitle(
            f"Forward pass, {setting['clip']}, {setting['frames']} frames, {setting['classes']}, "
            f"on {results['device']}",
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        return save(drawn, path)


if __name__ == "__main__":
    main()
