"""bottleneck_adapter against plain PyTorch and torch.compile: time of a call.

    python benchmarks/bottleneck_speed.py
    python benchmarks/bottleneck_speed.py --cases text --no-compile

All variants have the same inputs and take turns in one run. A variant that disagrees with the reference in double
precision is not timed, and the exit code is then 1. The floor is the matrix products alone: two forward, four more
backward. On a GPU the caches are overwritten between calls, and peak memory of a forward and backward is counted.
Writes bottleneck_speed.json and bottleneck_speed.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import command, framework, workloads
from benchmarks.framework import PASSES


@dataclass(frozen=True)
class Case:
    name: str
    tokens: int
    dim: int
    width: int
    activation: str = "gelu"
    dtype: str = "float32"


CPU_CASES = (
    Case("text", 400 * 13, 512, 384),  # the prompts of Kinetics-400, cut to the longest
    Case("vision", 2 * 8 * 197, 768, 384),
    Case("vision-r64", 2 * 8 * 197, 768, 64),
    Case("vision-quick", 2 * 8 * 197, 768, 192, "quick_gelu"),
    Case("vision-bf16", 2 * 8 * 197, 768, 384, dtype="bfloat16"),
    Case("tiny", 16, 32, 16),
)
GPU_CASES = (
    Case("vision", 32 * 8 * 197, 768, 384, dtype="bfloat16"),
    Case("vision-r64", 32 * 8 * 197, 768, 64, dtype="bfloat16"),
    Case("text", 400 * 13, 512, 384, dtype="bfloat16"),
    Case("text-r64", 400 * 13, 512, 64, dtype="bfloat16"),
    Case("vision-quick", 32 * 8 * 197, 768, 192, "quick_gelu", "bfloat16"),
    Case("tiny", 16, 32, 16, dtype="bfloat16"),
    Case("vision-fp32", 32 * 8 * 197, 768, 384),
)


class Problem(framework.Problem):
    what = "bottleneck_adapter"
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}
    products = (2, 6)

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device, workloads.bottleneck((case.tokens, case.dim), case.width, case.activation))

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        return f"{case['tokens']} tokens, D={case['dim']} R={case['width']} {case['activation']} {case['dtype']}"

    def forward_flops(self) -> int:
        return 4 * self.case.tokens * self.case.dim * self.case.width

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        x, down, down_bias, up, up_bias = (leaf.detach() for leaf in self.leaves.values())
        hidden = torch.randn_like(x[:, :1]).expand(-1, len(down)).contiguous()

        def forward() -> None:
            torch.addmm(down_bias, x, down.t()), torch.addmm(up_bias, hidden, up.t())

        def backward() -> None:
            forward()
            self.slope @ up, self.slope.t() @ hidden, hidden @ down, hidden.t() @ x

        return dict(zip(PASSES, (forward, backward), strict=True))


def main() -> None:
    command.run(__file__, __doc__, Problem, {"cpu": CPU_CASES, "cuda": GPU_CASES}, quick=("vision", "tiny"))


if __name__ == "__main__":
    main()
