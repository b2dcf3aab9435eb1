"""msta_adapter against plain PyTorch, with nn.Conv3d on permuted tokens, and torch.compile: time of a call.

    python benchmarks/msta_speed.py
    python benchmarks/msta_speed.py --cases text --no-compile

The plain form is how adapters with a convolution over frames are usually written: tokens are permuted to
(B, d, T, H, W) for a depthwise nn.Conv3d and back. All variants have the same inputs and take turns in one run. One
that disagrees with the reference in double precision is not timed, and the exit code is then 1. The floor is the matrix
products alone: three forward, six more backward. On a GPU the caches are overwritten between calls, and peak memory of
a forward and backward is counted. Writes msta_speed.json and msta_speed.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, framework, workloads
from benchmarks.framework import COMPILED, EAGER, PASSES, REFERENCE
from benchmarks.workloads import Leaves
from m2clip.kernels import TimeLayout

SCALE = 0.005


@dataclass(frozen=True)
class Case:
    """grid: patches of a frame; without frames the tokens are text. joint: all frames of a clip in one sequence."""

    name: str
    sequences: int
    tokens: int
    dim: int
    width: int
    frames: int = 0
    grid: int = 0
    joint: bool = False
    after_up: bool = False
    dtype: str = "float32"

    @property
    def time(self) -> TimeLayout | None:
        return TimeLayout(self.frames, self.joint) if self.frames else None


def _per_frame(name: str, clips: int, width: int, **options: Any) -> Case:
    return Case(name, clips * 8, 197, 768, width, 8, 14, **options)


def _joint(name: str, clips: int, width: int, **options: Any) -> Case:
    return Case(name, clips, 1 + 8 * 196, 768, width, 8, 14, True, **options)


_TINY = ("tiny", 4, 5, 32, 16, 2, 2)
CPU_CASES = (
    _per_frame("clip", 2, 256),
    _joint("viclip", 2, 256),
    _per_frame("clip-d128", 2, 128),
    Case("text", 400, 20, 512, 256),
    _per_frame("clip-after-up", 2, 256, after_up=True),
    _per_frame("clip-bf16", 2, 256, dtype="bfloat16"),
    Case(*_TINY),
)
GPU_CASES = (
    _per_frame("clip", 32, 256, dtype="bfloat16"),
    _joint("viclip", 32, 256, dtype="bfloat16"),
    _per_frame("clip-d128", 32, 128, dtype="bfloat16"),
    Case("text", 400, 20, 512, 256, dtype="bfloat16"),
    _per_frame("clip-after-up", 32, 256, after_up=True, dtype="bfloat16"),
    Case(*_TINY, dtype="bfloat16"),
    _per_frame("clip-fp32", 32, 256),
)


def plain(case: Case, leaves: Leaves) -> Tensor:
    """The same in plain PyTorch; a class token of each frame is convolved by itself, as a grid of one patch."""
    x, base, down, down_bias, shared, shared_bias, up, up_bias, *convolution = leaves.values()
    h = F.relu(F.linear(F.relu(F.linear(x, down, down_bias)), shared, shared_bias))
    branch = F.linear(h, up, up_bias)
    if convolution:
        taps, conv_bias = convolution
        video = branch if case.after_up else h
        groups = video.shape[-1]

        def mixed(tokens: Tensor) -> Tensor:  # (B, T, H, W, C)
            source = tokens.permute(0, 4, 1, 2, 3).contiguous()
            out = F.conv3d(source, taps[..., None, None], conv_bias, padding=(1, 0, 0), groups=groups)
            return out.permute(0, 2, 3, 4, 1)

        if case.joint:  # time runs fastest
            clips = video[:, 1:].unflatten(1, (case.grid, case.grid, case.frames)).permute(0, 3, 1, 2, 4)
            rows = mixed(clips).permute(0, 2, 3, 1, 4).flatten(1, 3)
            branch = branch + F.pad(rows, (0, 0, 1, 0))
        else:
            clips = video.unflatten(0, (-1, case.frames))
            first = mixed(clips[:, :, :1].unsqueeze(3)).flatten(2, 3)
            patches = mixed(clips[:, :, 1:].unflatten(2, (case.grid, case.grid))).flatten(2, 3)
            branch = branch + torch.cat([first, patches], dim=2).flatten(0, 1)
    return base + branch * SCALE


class Problem(framework.Problem):
    what = "msta_adapter"
    # Half precision rounds hidden values across the kink of a ReLU, in plain PyTorch as well.
    tolerance = {"float32": 1e-5, "bfloat16": 5e-2}
    products = (3, 9)

    def __init__(self, case: Case, device: torch.device) -> None:
        tokens = (case.sequences, case.tokens, case.dim)
        super().__init__(case, device, workloads.msta(tokens, case.width, case.time, case.after_up, scale=SCALE))

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        layout = f"T={case['frames']}{' joint' if case['joint'] else ''}" if case["frames"] else "text"
        after = ", after up" if case["after_up"] else ""
        tokens = f"{case['sequences']}x{case['tokens']} tokens"
        return f"{tokens}, {layout}{after}, D={case['dim']} d={case['width']} {case['dtype']}"

    def plain(self) -> dict[str, framework.Builder]:
        def permuted(leaves: Leaves) -> Tensor:
            return plain(self.case, leaves)

        return {
            EAGER: lambda: self.variant(lambda: permuted(self.leaves)),
            COMPILED: lambda: self.compile(permuted),
            REFERENCE: lambda: self.on("reference"),
        }

    def forward_flops(self) -> int:
        case = self.case
        return 2 * case.sequences * case.tokens * case.width * (2 * case.dim + case.width)

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        x, _, down, _, shared, _, up, *_ = (leaf.detach() for leaf in self.leaves.values())
        x, dy = x.flatten(0, 1), self.slope.flatten(0, 1)
        hidden = torch.randn_like(x[:, :1]).expand(-1, len(down)).contiguous()

        def forward() -> None:
            x @ down.t(), hidden @ shared.t(), hidden @ up.t()

        def backward() -> None:
            forward()
            dy @ up, hidden @ shared, hidden @ down
            dy.t() @ hidden, hidden.t() @ hidden, hidden.t() @ x

        return dict(zip(PASSES, (forward, backward), strict=True))


def main() -> None:
    command.run(__file__, __doc__, Problem, {"cpu": CPU_CASES, "cuda": GPU_CASES}, quick=("clip", "tiny"))


if __name__ == "__main__":
    main()
