"""What every launch of an operation moves and computes, and how long that takes at a GPU's limits: a prediction.

    python benchmarks/byte_model.py --shapes b16-r384 --launches
    python benchmarks/byte_model.py --bandwidth 3.0 --rate 600 --json model.json

Needs no GPU. The kernels run in Triton's interpreter on one clip and on two, where every address is counted, and are
extended to the shape's clips; PyTorch's launches are counted by their tensors. A launch takes the longer of its bytes
over the bandwidth and its products' FLOPs over the rate; what it reads twice is read once from memory, and nothing
stays in the cache from one launch to the next. Vector arithmetic and the start of a launch cost nothing. So the numbers
are a bound for each launch, not a measurement. The floor is one launch that reads the inputs, writes the outputs and
computes the products without a padded tile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import msta_speed
from benchmarks.adapter_speed import GPU_CASES
from benchmarks.adapter_variants import Case, Problem
from benchmarks.framework import PASSES
from benchmarks.tables import digits
from benchmarks.traffic import Launch, count, for_clips
from benchmarks.workloads import Workload, bottleneck, gelu, loss, msta, ted_weights
from m2clip.commands.shared.output import console, table
from m2clip.kernels import MSTAWeights
from m2clip.kernels.operands import Branches, Geometry
from m2clip.kernels.ops.operator import implementation

DTYPE = torch.float16  # as large as bf16, which the interpreter computes slowly
EAGER, TRITON = "eager", "triton"
BANDWIDTH, RATE = 4.3, 790.0
ARCHITECTURE = 90
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """One operation on one shape.

    units: clips, or groups of rows, in which the launches are counted one and two at a time.
    floor: of each pass, bytes and FLOPs that nothing can avoid.
    variants: by name: "triton", or with a plan of the forward pass, "triton narrow".
    launches: of a variant, a pass and a number of units.
    """

    op: str
    name: str
    units: int
    floor: dict[str, tuple[int, int]]
    variants: list[str]
    launches: Callable[[str, str, int], list[Launch]]


def ted_shape(case: Case) -> Shape:
    geometry, least = Geometry(case.frames, case.grid, True), replace(case, dtype="float16")

    def launches(variant: str, which: str, clips: int) -> list[Launch]:
        problem = Problem(replace(least, clips=clips), CPU)
        if variant == EAGER:
            return count(problem.authors().runs()[which])
        leaves = {name: leaf.detach() for name, leaf in problem.leaves.items()}
        x, branches = leaves["x"], Branches.of(ted_weights(leaves, problem.layout), DTYPE)
        backend, plan = variant.split()
        run = implementation("ted_adapter", backend)
        if which == PASSES[0]:
            return count(lambda: run.forward(x, branches, geometry, True, False, plan))

        def both() -> None:
            h = run.forward(x, branches, geometry, True, True, plan)[1]
            run.backward(problem.slope, x, h, branches, geometry, True, True, True)

        return count(both)

    floor = {
        which: (least.least_bytes(back), least.flops(back)) for which, back in zip(PASSES, (False, True), strict=True)
    }
    empty = Problem(replace(least, clips=0), CPU)
    branches = Branches.of(ted_weights(empty.leaves, empty.layout), DTYPE)
    plans = implementation("ted_adapter", TRITON).plans(branches, geometry, DTYPE)
    variants = [EAGER, *(f"{TRITON} {plan}" for plan in plans)]
    return Shape("ted_adapter", case.name, case.clips, floor, variants, launches)


def work_shape(
    name: str, make: Callable[[int], Workload], units: int, products: int, run: Any, added: int = 0
) -> Shape:
    """A shape of another operation.

    products: FLOPs of a forward pass, a third of those with backward.
    added: leaves after the first that grow with the units as well; they are added to the output as they are, so that
        their gradient is the output's.
    """

    def launches(variant: str, which: str, number: int) -> list[Launch]:
        work = make(number)
        leaves = {key: leaf.detach() for key, leaf in work.placed(DTYPE, CPU).items()}
        slope = torch.ones_like(work.call(leaves, "reference"))
        if variant == EAGER:
            if which == PASSES[0]:
                return count(lambda: work.call(leaves, "reference"))
            return count(lambda: work.results(leaves, "reference", slope))
        return count(lambda: run(implementation(work.op, variant), leaves, slope, which == PASSES[1]))

    work = make(1)
    leaves = work.placed(DTYPE, CPU)
    first, *rest = (leaf.nbytes for leaf in leaves.values())
    out = work.call(leaves, "reference").nbytes
    other, weights = sum(rest[:added]), sum(rest[added:])
    forward = (first + other) * units + weights + out * (units if out > 4 else 1)
    both = (3 * first + other + 2 * out * (out > 4)) * units + 2 * weights
    floor = {PASSES[0]: (forward, products), PASSES[1]: (both, 3 * products)}
    return Shape(work.op, name, units, floor, [EAGER, TRITON], launches)


def run_bottleneck(module: Any, leaves: dict[str, Tensor], slope: Tensor, backward: bool) -> None:
    x, *weights = leaves.values()
    h = module.forward(x, weights, "gelu", 1.0, True, backward)[1]
    if backward:
        module.backward(slope, x, h, weights, "gelu", 1.0, True, True, True)


def run_msta(case: msta_speed.Case, module: Any, leaves: dict[str, Tensor], slope: Tensor, backward: bool) -> None:
    x, base, *tensors = leaves.values()
    weights = MSTAWeights(*tensors, after_up=case.after_up)
    _, first, second = module.forward(x, base, weights, case.time, 1.0, backward)
    most = module.MOST_SUMS
    module.MOST_SUMS = max(most * len(x) // case.sequences, 1)  # these clips' share of the programs that sum
    try:
        if backward:
            module.backward(slope, x, first, second, weights, case.time, 1.0, True, True)
    finally:
        module.MOST_SUMS = most


def msta_shape(case: msta_speed.Case) -> Shape:
    """Units are clips, of text a quarter of the sequences."""
    units = 4 if case.time is None else case.sequences // (1 if case.joint else case.frames)
    sequences = case.sequences // units
    products = 2 * case.sequences * case.tokens * case.width * (2 * case.dim + case.width)

    def make(number: int) -> Workload:
        return msta((number * sequences, case.tokens, case.dim), case.width, case.time, case.after_up)

    return work_shape(f"msta-{case.name}", make, units, products, partial(run_msta, case), added=1)


def run_gelu(module: Any, leaves: dict[str, Tensor], slope: Tensor, backward: bool) -> None:
    h, bias = leaves.values()
    module.forward(h, bias, "quick_gelu")
    if backward:
        module.backward(slope, h, bias, "quick_gelu", True, True)


def run_cross_entropy(module: Any, leaves: dict[str, Tensor], slope: Tensor, backward: bool) -> None:
    v, w, *rest = leaves.values()
    saved = module.cosine_cross_entropy(v, w, *rest)[1]
    if backward:
        module.cosine_cross_entropy_backward(slope, v, w, saved, *rest, True, True)


def run_soft_target(module: Any, leaves: dict[str, Tensor], slope: Tensor, backward: bool) -> None:
    v, w, *rest = leaves.values()
    saved = module.soft_target_kl(v, w, *rest, 10.0)[1]
    if backward:
        module.soft_target_kl_backward(slope, v, w, saved, *rest, 10.0, True, True)


def shapes() -> dict[str, Shape]:
    """By name: what the benchmarks measure on a GPU."""

    def rows(name: str, op: str, rows: int, units: int, dim: int, width: int) -> Shape:
        if op == "gelu":
            return work_shape(name, lambda n: gelu((n * rows, dim)), units, 0, run_gelu)
        flops = 4 * rows * units * dim * width
        return work_shape(name, lambda n: bottleneck((n * rows, dim), width), units, flops, run_bottleneck)

    made = [ted_shape(case) for case in GPU_CASES if case.dtype == "bfloat16"]
    made += [
        rows("text", "bottleneck", 400, 13, 512, 384),
        rows("text-r64", "bottleneck", 400, 13, 512, 64),
        rows("vision", "bottleneck", 197, 256, 768, 384),
        rows("vision-r64", "bottleneck", 197, 256, 768, 64),
        rows("mlp", "gelu", 197, 256, 3072, 0),
    ]
    made += [msta_shape(case) for case in msta_speed.GPU_CASES if case.dtype == "bfloat16"]
    losses = (
        ("k400", "cosine_cross_entropy", 400, run_cross_entropy),
        ("pairs", "soft_target_kl", 64, run_soft_target),
    )
    for name, op, columns, run in losses:
        made.append(work_shape(name, lambda n, op=op, c=columns: loss(op, 64, c, 512), 1, 2 * 64 * columns * 512, run))
    return {shape.name: shape for shape in made}


def seconds(launch: Launch, bandwidth: float, rate: float) -> tuple[float, str]:
    """Time of a launch at the limits, and which of them it is."""
    memory, compute = launch.moved / (bandwidth * 1e12), launch.flops / (rate * 1e12)
    return (memory, "memory") if memory >= compute else (compute, "compute")


def predict(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Every launch of every variant and pass, their sums, and the floor."""
    passes: dict[str, Any] = {}
    for which in PASSES:
        least, flops = shape.floor[which]
        floor = seconds(Launch("floor", least, 0, least, flops), args.bandwidth, args.rate)
        found: dict[str, Any] = {}
        for variant in shape.variants:
            counted = partial(shape.launches, variant, which)
            # PyTorch copies a batch of one in fewer steps than a larger one.
            start = 2 if variant == EAGER else 1
            launches = counted(1) if shape.units == 1 else for_clips(counted, shape.units, start)
            times = [seconds(launch, args.bandwidth, args.rate) for launch in launches]
            found[variant] = {
                "launches": [
                    {**asdict(launch), "predicted_seconds": time, "bound": bound}
                    for launch, (time, bound) in zip(launches, times, strict=True)
                ],
                "bytes": sum(launch.moved for launch in launches),
                "flops": sum(launch.flops for launch in launches),
                "predicted_seconds": sum(time for time, _ in times),
            }
        passes[which] = {
            "floor": {"bytes": least, "flops": flops, "predicted_seconds": floor[0], "bound": floor[1]},
            "variants": found,
        }
    return {"op": shape.op, "name": shape.name, "units": shape.units, "passes": passes}


def show(result: dict[str, Any], every_launch: bool) -> None:
    for which, numbers in result["passes"].items():
        print(f"\n{result['op']} {result['name']}, {which}: predicted")
        rows, eager = [], numbers["variants"].get(EAGER)
        for name, own in numbers["variants"].items():
            times = own["predicted_seconds"], numbers["floor"]["predicted_seconds"]
            waits = sum(each["predicted_seconds"] for each in own["launches"] if each["bound"] == "memory")
            over = f"{eager['predicted_seconds'] / times[0]:.2f}x" if eager else "-"
            sizes = f"{own['bytes'] / 1e6:.0f}", f"{own['flops'] / 1e9:.3g}"
            shares = f"{100 * waits / times[0]:.0f} %", f"{100 * times[1] / times[0]:.0f} %"
            rows.append((name, str(len(own["launches"])), *sizes, digits(times[0] * 1e6), *shares, over))
        floor = numbers["floor"]
        sizes = f"{floor['bytes'] / 1e6:.0f}", f"{floor['flops'] / 1e9:.3g}"
        rows.append(
            (f"floor ({floor['bound']})", "1", *sizes, digits(floor["predicted_seconds"] * 1e6), "", "100 %", "")
        )
        header = ("", "launches", "MB", "GFLOP", "us", "memory-\nbound", "of\nfloor", "vs\neager")
        console().print(table(header, rows, numbers=7))
        for name, own in numbers["variants"].items() if every_launch else ():
            cells = [
                (
                    each["name"].removesuffix("_kernel"),
                    *(f"{each[key] / 1e6:.3g}" for key in ("read", "written", "requested")),
                    f"{each['flops'] / 1e9:.3g}",
                    digits(each["predicted_seconds"] * 1e6),
                    each["bound"],
                )
                for each in own["launches"]
            ]
            header = (name, "MB\nread", "MB\nwritten", "MB\nasked for", "GFLOP", "us", "")
            console().print(table(header, cells))


def main() -> None:
    known = shapes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=known, default=["b16-r384", "b16-r64"], metavar="NAME")
    parser.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, help=f"TB/s of a copy (default: {BANDWIDTH}, H200)"
    )
    parser.add_argument("--rate", type=float, default=RATE, help=f"TFLOP/s of a bf16 product ({RATE:g}: an H200)")
    parser.add_argument("--architecture", type=int, default=ARCHITECTURE, help="whose configurations: 90 for sm_90")
    parser.add_argument("--launches", action="store_true", help="show every launch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    from m2clip.kernels.triton import device

    device._LEAST = args.architecture  # what kernels take the CPU for, where the interpreter runs them
    results = []
    for name in args.shapes:
        results.append(predict(known[name], args))
        show(results[-1], args.launches)
    if args.json:
        limits = {"bandwidth_tb_s": args.bandwidth, "rate_tflop_s": args.rate, "architecture": args.architecture}
        args.json.write_text(json.dumps({"predicted_at": limits, "cases": results}, indent=1) + "\n")
        print(args.json)


if __name__ == "__main__":
    main()
