"""How far every backend's results are from fp64, beside plain PyTorch's in the same dtype.

    python benchmarks/errors.py                                    # every backend of this machine
    TRITON_INTERPRET=1 python benchmarks/errors.py --backends triton --small --dtypes float32 float16

Inputs are rounded to the dtype first, so that only the computation counts. An error is a tensor's largest difference as
a share of its largest true value; the table holds the worst over shapes and tensors. m2clip/kernels/exactness.py says
how far off a backend may be. msta_adapter's gradients are far off in half precision whoever computes them, where a
hidden value is rounded across the kink of a ReLU. Writes errors.json, and with Triton's interpreter
errors_interpreted.json.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import Budget, parser, write_results
from benchmarks.workloads import DEVICE, Workload, bottleneck, gelu, in_double, loss, msta, ted
from m2clip import kernels
from m2clip.commands.shared.output import console, table
from m2clip.kernels import TimeLayout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("both", "shared", "temporal", "difference")


def small_workloads() -> Iterator[Workload]:
    """What the interpreter computes in seconds."""
    for layout in LAYOUTS:
        yield ted(2, 3, (5, 4), 48, 32, layout)
    for activation in ("gelu", "quick_gelu", "relu", "none"):
        yield bottleneck((60, 48), 32, activation)
    yield bottleneck((40, 64), 200)
    yield msta((12, 7, 48), 16, None)
    for after_up in (False, True):
        yield msta((6, 10, 48), 16, TimeLayout(3), after_up)
        yield msta((2, 31, 48), 16, TimeLayout(3, joint=True), after_up)
    yield from (gelu((40, 96), activation) for activation in ("quick_gelu", "gelu"))
    yield loss("cosine_cross_entropy", 16, 40, 64)
    yield loss("soft_target_kl", 24, 24, 64)


def clip_workloads() -> Iterator[Workload]:
    """Shapes of CLIP's towers."""
    yield loss("cosine_cross_entropy", 64, 400, 512)
    yield loss("soft_target_kl", 64, 64, 512)
    yield from (bottleneck((400 * 13, 512), 384, activation) for activation in ("gelu", "quick_gelu"))
    yield from (bottleneck((4 * 197, 768), width) for width in (384, 64))
    yield from (gelu((4 * 197, 3072), activation) for activation in ("quick_gelu", "gelu"))
    yield msta((100, 20, 512), 256, None)
    for after_up in (False, True):
        yield msta((8, 197, 768), 256, TimeLayout(8), after_up)
        yield msta((1, 1 + 8 * 196, 768), 256, TimeLayout(8, joint=True), after_up)
    yield msta((8, 197, 768), 128, TimeLayout(8))
    for layout in LAYOUTS:
        yield ted(1, 8, (14, 14), 768, 384, layout)
    yield ted(1, 8, (14, 14), 768, 64)
    yield ted(1, 16, (7, 7), 768, 384)
    yield ted(1, 8, (16, 16), 1024, 384)


def errors(work: Workload, backend: str, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Ours and plain PyTorch's, of the output and of every gradient."""
    leaves = work.placed(dtype)
    exact = work.results(in_double(leaves), "reference")

    def of(backend: str) -> list[float]:
        return [
            ((found.double() - true).abs().max() / true.abs().max()).item()
            for found, true in zip(work.results(leaves, backend), exact, strict=True)
        ]

    return of(backend), of("reference")


def runs(work: Workload, backend: str, dtype: torch.dtype) -> bool:
    try:
        kernels.explain(work.op, next(iter(work.placed(dtype).values())), backend=backend)
    except ValueError:
        return False
    return True


def measure(backends: list[str], dtypes: list[str], small: bool, budget: Budget) -> list[dict[str, Any]]:
    """The worst errors by operation, backend and dtype."""
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for work in small_workloads() if small else clip_workloads():
        if not budget.allows(f"{work.op} {work.name}"):
            continue
        for dtype in dtypes:
            for backend in backends:
                if not runs(work, backend, getattr(torch, dtype)):
                    continue
                own = worst.setdefault(
                    (work.op, backend, dtype), {"shapes": 0, "output": [0.0, 0.0], "gradients": [0.0, 0.0]}
                )
                own["shapes"] += 1
                (ours, *our_gradients), (eager, *eager_gradients) = errors(work, backend, getattr(torch, dtype))
                for kind, pair in (
                    ("output", (ours, eager)),
                    ("gradients", (max(our_gradients), max(eager_gradients))),
                ):
                    own[kind] = [max(before, now) for before, now in zip(own[kind], pair, strict=True)]
    return [
        {
            "op": op,
            "backend": backend,
            "dtype": dtype,
            "shapes": own["shapes"],
            **{kind: dict(zip(("error", "eager_error"), own[kind], strict=True)) for kind in ("output", "gradients")},
        }
        for (op, backend, dtype), own in worst.items()
    ]


def main() -> None:
    options = parser(__doc__, "--budget", writes="the JSON")
    options.add_argument("--backends", nargs="+", default=list(kernels.BACKENDS[1:]), choices=kernels.BACKENDS[1:])
    options.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    options.add_argument("--small", action="store_true", help="small shapes, for Triton's interpreter")
    args = options.parse_args()
    budget = Budget(args.budget)
    torch.backends.cudnn.allow_tf32 = False
    rows = measure(args.backends, args.dtypes, args.small, budget)
    for op in dict.fromkeys(row["op"] for row in rows):
        cells = []
        for row in rows:
            if row["op"] == op:
                pairs = [(row[kind]["error"], row[kind]["eager_error"]) for kind in ("output", "gradients")]
                cells.append((row["backend"], row["dtype"], *(f"{value:.1e}" for pair in pairs for value in pair)))
        print(f"\n{op}: worst error against fp64, and PyTorch's in the same dtype")
        header = ("backend", "dtype", "output", "PyTorch's", "gradients", "PyTorch's")
        console().print(table(header, cells, numbers=4))
    name = "errors_interpreted" if INTERPRETED else "errors"
    config = {"small": args.small, "left_out": budget.left_out}
    print(write_results(name, DEVICE, {"config": config, "rows": rows}, args.out))


if __name__ == "__main__":
    main()
