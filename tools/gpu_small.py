"""Run every GPU kernel and every plan once on small, odd shapes, without a test framework: for compute-sanitizer.

compute-sanitizer --tool memcheck python tools/gpu_small.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.workloads import Workload, bottleneck, gelu, loss, msta, planned, ted
from m2clip import kernels
from m2clip.kernels import TimeLayout
from tests.gpu.workloads import BACKENDS

DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = ("both", "shared", "temporal", "difference")
WORKLOADS = (
    *(ted(2, 3, (5, 4), 40, 24, layout) for layout in LAYOUTS),
    *(ted(2, 2, (3, 3), 128, 64, layout) for layout in LAYOUTS),  # multiples of 64: what one launch on Hopper takes
    ted(1, 2, (3, 3), 33, 64, class_token=False),
    ted(2, 2, (3, 3), 64, 32, patches_only=True),
    bottleneck((37, 40), 24),
    bottleneck((5, 64), 33, "quick_gelu", 0.5),
    bottleneck((37, 40), 200, "relu", residual=False),  # two launches
    msta((6, 7, 36), 12, TimeLayout(3)),
    msta((2, 22, 33), 11, TimeLayout(3, joint=True), after_up=True),
    msta((6, 7, 40), 24, TimeLayout(3), after_up=True),
    msta((5, 7, 40), 24, None),
    gelu((21, 130)),
    loss("cosine_cross_entropy", 5, 37, 33),
    loss("cosine_cross_entropy", 70, 15_000, 16),  # more dot products than are kept, and sums that are split
    loss("soft_target_kl", 9, 9, 64),
    loss("soft_target_kl", 1025, 1025, 16),
)


def results(work: Workload, backend: str, dtype: torch.dtype) -> Iterator[str]:
    """Forward and backward by every plan; the names of the plans. The last plan's weights are frozen."""
    leaves = work.placed(dtype)
    for plan in work.plans(leaves, backend) or [""]:
        with planned(backend, plan) if plan else nullcontext():
            work.results(leaves, backend)
        yield plan
    first, *rest = leaves
    frozen = {name: leaf for name, leaf in leaves.items() if name != first}
    x = leaves[first].detach().requires_grad_()
    y = work.call({first: x, **frozen}, backend)
    torch.autograd.grad(y, [x], work.slope(y))
    yield "frozen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=sorted(BACKENDS), help="only this operation")
    args = parser.parse_args()
    states = kernels.backend_states()
    for work in WORKLOADS:
        for backend in BACKENDS[work.op] if args.op in (None, work.op) else ():
            if not states[backend].available:
                print(f"{work.op} {backend}: not run, {states[backend].reason}")
                continue
            for dtype in DTYPES:
                done = ", ".join(filter(None, results(work, backend, dtype)))
                torch.cuda.synchronize()
                print(f"{work.op} {backend} {dtype}: {work.name}; {done}", flush=True)


if __name__ == "__main__":
    main()
