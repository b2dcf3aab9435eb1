"""What lies between the two projections of the TED-Adapter, against a memory copy of the same bytes.

    python benchmarks/mixer_speed.py
    python benchmarks/mixer_speed.py --shapes b16-r384 --warm

The mixer takes hidden rows of both branches, (B, T, L, R) each, to their convolved rows. Forward it reads and writes
them once; backward it reads the rows and the gradient of its output, and writes the gradient of the rows. The copy is
of the same rows, in the same state of the caches: overwritten before each call, or with --warm left as the call before
left them. Writes mixer_speed.json.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adapter_speed import CACHE_BYTES, CPU_CASES, GPU_CASES, TINY, TURN_SECONDS, describe
from benchmarks.adapter_table import digits, title
from benchmarks.adapter_variants import TOLERANCE, Case, Problem, backend_reasons, shifted_mix, ted_weights
from benchmarks.measure import Budget, calls_for, interleave, overwritten_caches, ratio, summary, write_results
from m2clip.commands.output import console, print_line, table
from m2clip.kernels import BranchWeights, reference
from m2clip.kernels.dispatch import device_of

PASSES = {"forward": 2, "backward": 3}  # how often each moves the rows of both branches
Mix = Callable[[Tensor, Tensor, Tensor, BranchWeights, BranchWeights, tuple[int, int]], tuple[Tensor, Tensor]]


class Rows:
    """Hidden rows of both branches, the gradient of the mixer's output, and the weights between them, all random."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.weights = Problem(case, device).weights
        shape = (2, case.clips, case.frames, case.length, case.width)
        generator = torch.Generator(device).manual_seed(1)
        self.h = torch.randn(shape, generator=generator, device=device).to(case.dtype)
        self.du = torch.randn(shape, generator=generator, device=device).to(case.dtype)

    def side_by_side(self, rows: Tensor) -> Tensor:
        """Both branches' rows as one (B*T, L, 2R)."""
        return torch.cat([*rows], dim=-1).flatten(0, 1).contiguous()


class AutogradMixer:
    """A mixer written in PyTorch, differentiated by autograd; its backward pass does not run the forward pass again."""

    def __init__(self, rows: Rows, mix: Mix, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or rows.case.dtype
        weights = {name: tensor.to(dtype).requires_grad_() for name, tensor in rows.weights.items()}
        te, td = ted_weights(weights, shared=False)[:2]
        assert te is not None and td is not None
        self.h = [part.to(dtype).requires_grad_() for part in rows.h]
        self.du = [part.to(dtype) for part in rows.du]
        self.trained = [te.conv_weight, te.conv_bias, td.conv_weight, td.conv_bias, td.down_bias]
        self.mix: Callable[[], tuple[Tensor, Tensor]] = lambda: mix(*self.h, td.down_bias, te, td, rows.case.grid)
        self.u = self.mix()

    def forward(self) -> Tensor:
        """(B*T, L, 2R)."""
        with torch.no_grad():
            return torch.cat(self.mix(), dim=-1).flatten(0, 1)

    def backward(self) -> list[Tensor]:
        """dh (B*T, L, 2R), and the gradients of the convolutions and of TD's first bias."""
        h_te, h_td, *small = torch.autograd.grad(self.u, [*self.h, *self.trained], self.du, retain_graph=True)
        return [torch.cat([h_te, h_td], dim=-1).flatten(0, 1), *small]

    def runs(self) -> dict[str, Callable[[], Any]]:
        def forward() -> Any:
            with torch.no_grad():
                return self.mix()

        def backward() -> Any:
            return torch.autograd.grad(self.u, [*self.h, *self.trained], self.du, retain_graph=True)

        return dict(zip(PASSES, (forward, backward), strict=True))


def reference_mix(
    h_te: Tensor, h_td: Tensor, td_bias: Tensor, te: BranchWeights, td: BranchWeights, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The definition: (u_e, u_d), the class row of u_d 0."""
    change = reference.frame_difference(h_td[:, :, 1:]) + td_bias
    return reference.temporal_conv(h_te, te), F.pad(reference.spatial_conv(change, td, grid), (0, 0, 1, 0))


class AcceleratedMixer:
    """The mixer of a backend."""

    def __init__(self, rows: Rows, backend: str) -> None:
        from m2clip.kernels.operands import Geometry

        weights = rows.weights
        temporal = [weights[f"temporal.{name}"] for name in ("conv_weight", "conv_bias")]
        difference = [weights[f"difference.{name}"] for name in ("conv_weight", "conv_bias", "down_bias")]
        make = importlib.import_module(f"m2clip.kernels.{MODULES[backend]}").Mixer
        self.mixer = make(temporal, difference, False, Geometry(rows.case.frames, rows.case.grid, True))
        self.h, self.du = rows.side_by_side(rows.h), rows.side_by_side(rows.du)
        self.u, self.dh = torch.empty_like(self.h), torch.empty_like(self.h)
        without_u = (None,) if backend == "cuda" else ()  # its backward pass can write u as well
        self.backward_arguments = (self.h, self.du, *without_u, self.dh)

    def forward(self) -> Tensor:
        self.mixer.forward(self.h, self.u)
        return self.u

    def backward(self) -> list[Tensor]:
        te_weight, te_bias, _, td_weight, td_bias, td_down = self.mixer.backward(*self.backward_arguments)
        return [self.dh, te_weight, te_bias, td_weight, td_bias, td_down]

    def runs(self) -> dict[str, Callable[[], Any]]:
        return dict(zip(PASSES, (self.forward, self.backward), strict=True))


MODULES = {"native": "native", "triton": "triton.mixer", "cuda": "cuda"}  # of m2clip.kernels, with a class Mixer


def prepare(rows: Rows, compiled: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Mixers that agree with the reference in double precision, and why the others are not timed."""
    build: dict[str, Callable[[], Any]] = {"m2clip reference": lambda: AutogradMixer(rows, reference_mix)}
    not_run = {}
    if compiled:
        build["shift-add compiled"] = lambda: AutogradMixer(rows, torch.compile(shifted_mix, dynamic=False))
    else:
        not_run["shift-add compiled"] = "left out by --no-compile"
    reasons = backend_reasons()
    for backend in MODULES:
        device = device_of(backend)
        reason = reasons[backend] or ("" if rows.h.device.type == device else f"runs on a {device} device")
        if reason:
            not_run[f"m2clip {backend}"] = reason
        else:
            build[f"m2clip {backend}"] = lambda backend=backend: AcceleratedMixer(rows, backend)
    exact = AutogradMixer(rows, reference_mix, torch.float64)
    truth, ready = [exact.forward(), *exact.backward()], {}
    for name, make in build.items():
        try:
            mixer = make()
            results = [mixer.forward(), *mixer.backward()]
        except Exception as met:  # a compiler that is missing, for one: told, not hidden
            not_run[name] = f"{type(met).__name__}: {str(met).strip().splitlines()[0]}"
            continue
        errors = [
            ((found.double() - wanted).abs().max() / wanted.abs().max()).nan_to_num(float("inf")).item()
            for found, wanted in zip(results, truth, strict=True)
        ]
        if max(errors) <= TOLERANCE[rows.case.dtype]:
            ready[name] = mixer
        else:
            not_run[name] = f"wrong: error {max(errors):.1e}"
    return ready, not_run


def measure(case: Case, args: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Times of all mixers of one case, and their share of the copy's bandwidth."""
    torch._dynamo.reset()
    device = torch.device(args.device)
    rows = Rows(case, device)
    ready, not_run = prepare(rows, not args.no_compile and budget.allows_compiling())
    target, overwrite = torch.empty_like(rows.h), overwritten_caches(device, CACHE_BYTES)
    passes = {}
    for which, times in PASSES.items():
        touched = times * rows.h.nbytes
        runs = {name: mixer.runs()[which] for name, mixer in ready.items()}
        runs["copy"] = lambda: target.copy_(rows.h)
        turn = TURN_SECONDS if args.warm or device.type == "cuda" else 0.0
        calls = {name: calls_for(run, device, turn) for name, run in runs.items()}
        before = None if args.warm else overwrite
        seconds = interleave(runs, budget.rounds(args.rounds), device, calls=calls, before_turn=before)
        copied = [taken * touched / (2 * rows.h.nbytes) for taken in seconds["copy"]]
        variants = {
            name: {"seconds": summary(seconds[name]), "copy_fraction": ratio(copied, seconds[name])} for name in ready
        }
        copy = {"seconds": summary(copied), "bandwidth_gb_s": touched / summary(copied)["median"] / 1e9}
        passes[which] = {"bytes": touched, "variants": variants, "copy": copy}
    return {"name": case.name, "shape": describe(case), "passes": passes, "not_run": not_run}


def show(result: dict[str, Any]) -> None:
    print_line(f"\n{result['name']}, mixer in ms: {title(result['shape'])}")
    rows = []
    for which, numbers in result["passes"].items():
        for name, own in numbers["variants"].items():
            share = f"{100 * own['copy_fraction']['median']:.0f} %"
            rows.append((which, name, digits(own["seconds"]["median"] * 1e3), share))
        copy = numbers["copy"]
        label = f"copy at {copy['bandwidth_gb_s']:.1f} GB/s"
        rows.append((which, label, digits(copy["seconds"]["median"] * 1e3), "100 %"))
    console().print(table(("", "", "median", "of copy"), rows, numbers=2))
    for name, reason in result["not_run"].items():
        print_line(f"{name}: not run, {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="default: all of the device's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the call before left them")
    Budget.add_argument(parser)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    args = parser.parse_args()
    budget = Budget(args.budget)
    torch.set_num_threads(args.threads)
    cases = CPU_CASES if args.device == "cpu" else GPU_CASES
    known = {case.name: case for case in cases if not case.shared and case.name != TINY.name}
    unknown = set(args.shapes or ()) - known.keys()
    if unknown:
        parser.error(f"unknown shape {sorted(unknown)[0]!r}; choose from {', '.join(known)}")
    results = []
    for name in args.shapes or known:
        if budget.allows(name):
            results.append(measure(known[name], args, budget))
            show(results[-1])
    config = {
        "left_out": budget.left_out,
        "rounds": budget.rounds(args.rounds),
        "warm": args.warm,
        "compiled": not args.no_compile,
        "threads": args.threads,
    }
    print(write_results("mixer_speed", torch.device(args.device), {"config": config, "cases": results}, args.out))
    reasons = [(result["name"], *item) for result in results for item in result["not_run"].items()]
    wrong = [f"{case}: {name} is {reason}" for case, name, reason in reasons if reason.startswith("wrong")]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
