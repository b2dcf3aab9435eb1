"""Run every GPU kernel once on small, odd shapes, without a test framework's processes: for compute-sanitizer.

compute-sanitizer --tool memcheck python tools/gpu_small.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.workloads import bottleneck, gelu, loss, msta, ted
from m2clip import kernels
from m2clip.kernels import TimeLayout
from tests.gpu.workloads import BACKENDS

DTYPES = (torch.float32, torch.bfloat16)
WORKLOADS = (
    *(ted(2, 3, (5, 4), 40, 24, layout) for layout in ("both", "shared", "temporal", "difference")),
    ted(1, 2, (3, 3), 33, 64, class_token=False),
    bottleneck((37, 40), 24),
    bottleneck((5, 64), 33, "quick_gelu", 0.5),
    msta((6, 7, 36), 12, TimeLayout(3)),
    msta((2, 22, 33), 11, TimeLayout(3, joint=True), after_up=True),
    msta((5, 7, 40), 24, None),
    gelu((21, 130)),
    loss("cosine_cross_entropy", 5, 37, 33),
    loss("soft_target_kl", 9, 9, 64),
)


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
                work.results(work.placed(dtype), backend)
                torch.cuda.synchronize()
                print(f"{work.op} {backend} {dtype}: {work.name}", flush=True)


if __name__ == "__main__":
    main()
