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

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import command
from benchmarks.adapter_variants import Case, Problem

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
    Case("b16-bf16", 2, 8, *B16, 384, "bfloat16"),
)
GPU_CASES = (
    Case("b16-r384", 32, 8, *B16, 384, "bfloat16"),
    Case("b16-r64", 32, 8, *B16, 64, "bfloat16"),
    Case("b16-t16", 16, 16, *B16, 384, "bfloat16"),
    Case("b16-shared", 32, 8, *B16, 384, "bfloat16", shared=True),
    Case("b32", 32, 8, *B32, 384, "bfloat16"),
    Case("l14", 16, 8, *L14, 384, "bfloat16"),
    replace(TINY, dtype="bfloat16"),
    Case("b16-fp32", 32, 8, *B16, 384),
)


def main() -> None:
    command.run(__file__, __doc__, Problem, {"cpu": CPU_CASES, "cuda": GPU_CASES}, quick=("b16-r384", "tiny"))


if __name__ == "__main__":
    main()
