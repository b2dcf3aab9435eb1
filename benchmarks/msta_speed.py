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

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import loss_plot
from benchmarks.adapter_speed import CACHE_BYTES
from benchmarks.adapter_variants import PASSES
from benchmarks.loss_speed import TURN_SECONDS, show
from benchmarks.loss_variants import COMPILED, EAGER
from benchmarks.measure import Budget, calls_for, interleave, overwritten_caches, ratio, summary, write_results
from benchmarks.memory import peak_bytes
from m2clip import kernels
from m2clip.kernels import MSTAWeights, TimeLayout

# Of a tensor's norm. Half precision rounds hidden values across the kink of a ReLU, in plain PyTorch as well.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
REFERENCE = "m2clip reference"
SCALE = 0.005
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 3, 6


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
CASES = tuple({case.name: case for case in (*CPU_CASES, *GPU_CASES)}.values())
SMALL_BYTES = 2**20  # tokens below this are a measurement of the overhead of a call


def plain(case: Case, x: Tensor, base: Tensor, *weights: Tensor) -> Tensor:
    """The same in plain PyTorch; a class token of each frame is convolved by itself, as a grid of one patch."""
    down, down_bias, shared, shared_bias, up, up_bias, *convolution = weights
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


class Problem:
    """Inputs of a case, all with a gradient, and what runs on them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        dim, width, dtype = case.dim, case.width, getattr(torch, case.dtype)
        tokens = (case.sequences, case.tokens, dim)
        shapes = [tokens, tokens, (width, dim), (width,), (width, width), (width,), (dim, width), (dim,)]
        shapes += [(dim, 1, 3), (dim,)] if case.frames else []
        tensors = [torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for shape in (*shapes, tokens)]
        *self.inputs, self.dy = (tensor.to(device, dtype) for tensor in tensors)
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.case = case

    def call(self, backend: str, x: Tensor, base: Tensor, *weights: Tensor) -> Tensor:
        fields = MSTAWeights(*weights, after_up=self.case.after_up)
        return kernels.msta_adapter(x, base, fields, self.case.time, scale=SCALE, backend=backend)

    def gradients(self, call: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
        """The output and all gradients."""
        y = call(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    def runs(self, call: Callable[..., Tensor]) -> dict[str, Callable[[], object]]:
        def forward() -> Tensor:
            with torch.no_grad():
                return call(*self.inputs)

        return dict(zip(PASSES, (forward, lambda: self.gradients(call, self.inputs, self.dy)), strict=True))

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        x, _, down, _, shared, _, up, *_ = (tensor.detach() for tensor in self.inputs)
        x, dy = x.flatten(0, 1), self.dy.flatten(0, 1)
        hidden = torch.randn_like(x[:, :1]).expand(-1, len(down)).contiguous()

        def forward() -> None:
            x @ down.t(), hidden @ shared.t(), hidden @ up.t()

        def backward() -> None:
            forward()
            dy @ up, hidden @ shared, hidden @ down
            dy.t() @ hidden, hidden.t() @ hidden, hidden.t() @ x

        return dict(zip(PASSES, (forward, backward), strict=True))

    def variants(self, compiled: bool) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str], list[str]]:
        """Variants that agree with the reference, why the others are not timed, and complaints of wrong ones."""
        found: dict[str, Callable[..., Tensor]] = {EAGER: partial(plain, self.case)}
        missing, complaints = {}, []
        if compiled:
            found[COMPILED] = torch.compile(found[EAGER], dynamic=False)
        else:
            missing[COMPILED] = "left out by --no-compile"
        found[REFERENCE] = partial(self.call, "reference")
        others = kernels.explain("msta_adapter", self.inputs[0], backend="reference").others
        for name in kernels.BACKENDS[1:]:
            try:
                kernels.explain("msta_adapter", self.inputs[0], backend=name)
            except ValueError:
                missing[f"m2clip {name}"] = others[name]
            else:
                found[f"m2clip {name}"] = partial(self.call, name)
        doubles = [tensor.detach().double().requires_grad_() for tensor in self.inputs]
        truth = self.gradients(found[REFERENCE], doubles, self.dy.double())
        for name, call in list(found.items()):
            try:
                results = self.gradients(call, self.inputs, self.dy)
            except Exception as met:  # a compiler that is missing: told, not hidden
                missing[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
                del found[name]
                continue
            error = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(results, truth, strict=True))
            if not error <= TOLERANCE[self.case.dtype]:
                missing[name] = f"wrong: error {error:.1e}"
                complaints.append(f"{self.case.name}: {name} is {missing[name]}")
                del found[name]
        return found, missing, complaints


def title(case: Any) -> str:
    """A case in one line."""
    layout = f"T={case['frames']}{' joint' if case['joint'] else ''}" if case["frames"] else "text"
    after = ", after up" if case["after_up"] else ""
    tokens = f"{case['sequences']}x{case['tokens']} tokens"
    return f"{tokens}, {layout}{after}, D={case['dim']} d={case['width']} {case['dtype']}"


def measure(case: Case, device: torch.device, rounds: int, compiled: bool) -> tuple[dict[str, Any], list[str]]:
    """All numbers of one case, and complaints of wrong variants."""
    torch._dynamo.reset()
    problem, passes = Problem(case, device), {}
    ready, not_run, wrong = problem.variants(compiled)
    large = problem.inputs[0].nbytes > SMALL_BYTES
    before = overwritten_caches(device, CACHE_BYTES) if device.type == "cuda" and large else None
    forward = 2 * case.sequences * case.tokens * case.width * (2 * case.dim + case.width)
    products = (FORWARD_PRODUCTS, FORWARD_PRODUCTS + BACKWARD_PRODUCTS)
    for which, gemms in zip(PASSES, products, strict=True):
        runs = {name: problem.runs(call)[which] for name, call in ready.items()}
        runs["floor"] = problem.floor_runs()[which]
        calls = {name: calls_for(run, device, TURN_SECONDS) for name, run in runs.items()}
        seconds = interleave(runs, rounds, device, calls=calls, before_turn=before)
        times: dict[str, Any] = {name: {"seconds": summary(taken)} for name, taken in seconds.items()}
        baselines = [name for name in (EAGER, COMPILED) if name in ready]
        for name in ready:
            times[name]["floor_fraction"] = ratio(seconds["floor"], seconds[name])
            times[name]["speedup_over"] = {other: ratio(seconds[other], seconds[name]) for other in baselines}
        flops = forward * gemms // FORWARD_PRODUCTS
        passes[which] = {"flops": flops, "floor": {**times.pop("floor"), "gemms": gemms}, "variants": times}
    result = {**asdict(case), "passes": passes, "not_run": not_run}
    if device.type == "cuda":
        both = {name: problem.runs(call)[PASSES[1]] for name, call in ready.items()}
        result["peak_memory_bytes"] = {name: peak_bytes(run, run, device) for name, run in both.items()}
    return result, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of JSON and PNG (default: benchmarks/results/<device>)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, cases, complaints, budget = torch.device(args.device), [], [], Budget(args.budget)
    rounds = budget.rounds(args.rounds)
    for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
        if (not args.cases or case.name in args.cases) and budget.allows(case.name):
            result, wrong = measure(case, device, rounds, not args.no_compile and budget.allows_compiling())
            show(result, title(result))
            cases.append(result)
            complaints += wrong
    config = {"rounds": rounds, "compiled": not args.no_compile, "threads": torch.get_num_threads()}
    config["left_out"] = budget.left_out
    path = write_results("msta_speed", device, {"config": config, "cases": cases}, args.out)
    print(path)
    print(loss_plot.draw(json.loads(path.read_text()), path.with_suffix(".png"), "msta_adapter", title))
    if complaints:
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
