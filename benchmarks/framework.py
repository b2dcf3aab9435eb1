"""What the benchmarks of operations share: cases, variants that agree with the reference, turns, memory.

A benchmark brings its cases and a `Problem` for them; bottleneck_speed.py is the shortest. A variant is timed only
where its output and all gradients agree with the reference in double precision, and all variants take turns in one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from benchmarks.measure import calls_for, interleave, overwritten_caches, ratio, reason, summary
from benchmarks.memory import in_own_process, peak_bytes
from benchmarks.workloads import Leaves, Workload, in_double
from m2clip import kernels

PASSES = FORWARD, BOTH = "forward", "forward+backward"
OURS = "m2clip"
EAGER, COMPILED, REFERENCE = "eager reference", "torch.compile", f"{OURS} reference"
CACHE_BYTES = 128 * 2**20  # more than the last-level cache of today's processors and GPUs
SMALL_BYTES = 2**20  # a first input below this is a measurement of the overhead of a call
TURN_SECONDS = 0.02


class Runnable(Protocol):
    """A variant that is ready to run."""

    def runs(self) -> dict[str, Callable[[], object]]:
        """By pass."""

    def results(self) -> dict[str, Tensor]:
        """What is compared with the reference, by name and in the reference's layout."""


Builder = Callable[[], Runnable]


@dataclass
class Variant:
    """One way to compute an operation, ready to run.

    Attributes:
        call: the output; its inputs are its own.
        trained: what is differentiated, by name.
        slope: gradient of the output.
        surroundings: context that every call runs in.
    """

    call: Callable[[], Tensor]
    trained: Mapping[str, Tensor]
    slope: Tensor
    surroundings: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)

    def forward(self) -> Tensor:
        with torch.no_grad(), self.surroundings():
            return self.call()

    def backward(self) -> tuple[Tensor, ...]:
        """Output and all gradients."""
        with self.surroundings():
            y = self.call()
            return y, *torch.autograd.grad(y, list(self.trained.values()), self.slope)

    def runs(self) -> dict[str, Callable[[], object]]:
        return dict(zip(PASSES, (self.forward, self.backward), strict=True))

    def results(self) -> dict[str, Tensor]:
        y = self.forward().clone()  # CUDA graphs write the next output over this one
        names = ("y without gradients", "y", *(f"d {name}" for name in self.trained))
        return dict(zip(names, (y, *self.backward()), strict=True))


class Problem:
    """A case on a device: its inputs, the ways to compute it, and the limits that no way can beat.

    Args:
        case: a dataclass with a name and a dtype.
        device: where everything is.
        work: the operation and its inputs.
        output: shape of the output (default: the first input's).
        frozen: inputs that need no gradient.

    Attributes:
        what: the operation, for the picture.
        tolerance: by dtype, the error of a variant that is still right.
        products: matrix products of the floor, forward and with backward.
        baselines: by title, variants of which the fastest is what the others are compared with.
        compiled, slow: variants of torch.compile, and those of them that compile for minutes.
        overwrites: kinds of device on which the caches are overwritten between calls.
        memory_on: kinds of device on which memory is measured.
        constants: what the JSON's config tells besides the options.
    """

    what: ClassVar[str] = ""
    tolerance: ClassVar[Mapping[str, float]] = {"float32": 1e-5}
    products: tuple[int, int] = (0, 0)
    baselines: ClassVar[Mapping[str, Sequence[str]]] = {EAGER: (EAGER,), COMPILED: (COMPILED,)}
    compiled: ClassVar[Sequence[str]] = (COMPILED,)
    slow: ClassVar[Sequence[str]] = ()
    passes: ClassVar[Sequence[str]] = PASSES
    overwrites: ClassVar[Sequence[str]] = ("cuda",)
    memory_on: ClassVar[Sequence[str]] = ("cuda",)
    constants: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        case: Any,
        device: torch.device,
        work: Workload,
        output: tuple[int, ...] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        self.case, self.device, self.work = case, device, work
        self.leaves = work.placed(getattr(torch, case.dtype), device)
        for name, leaf in self.leaves.items():
            leaf.requires_grad_(leaf.is_floating_point() and name not in frozen)
        first = next(iter(self.leaves.values()))
        self.slope = work.slope(first.new_empty(first.shape if output is None else output))
        self.size = first.nbytes

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        """A case of the JSON in one line."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The case in the JSON."""
        return asdict(self.case)

    def reference(self, leaves: Leaves) -> Tensor:
        """What is right, in the dtype of the inputs."""
        return self.work.call(leaves, "reference")

    def on(self, backend: str) -> Variant:
        """The operation on a backend."""
        return self.variant(lambda: self.work.call(self.leaves, backend))

    def variant(self, call: Callable[[], Tensor]) -> Variant:
        return Variant(call, {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}, self.slope)

    def compile(self, call: Callable[[Leaves], Tensor]) -> Variant:
        names, tensors = tuple(self.leaves), tuple(self.leaves.values())
        run = torch.compile(lambda *own: call(dict(zip(names, own, strict=True))), dynamic=False)
        return self.variant(lambda: run(*tensors))

    def exact(self) -> Runnable:
        """The reference in double precision."""
        leaves = {name: leaf.detach() for name, leaf in in_double(self.leaves).items()}
        trained = {name: leaves[name].requires_grad_() for name, leaf in self.leaves.items() if leaf.requires_grad}
        return Variant(lambda: self.reference(leaves), trained, self.slope.double())

    def plain(self) -> dict[str, Builder]:
        """What the backends are compared with."""
        return {
            EAGER: lambda: self.variant(lambda: self.reference(self.leaves)),
            COMPILED: lambda: self.compile(self.reference),
        }

    def builders(self) -> tuple[dict[str, Builder], dict[str, str]]:
        """All variants in the order of the tables, and why some cannot run."""
        found, missing = self.plain(), {}
        x = next(iter(self.leaves.values()))
        others = kernels.explain(self.work.op, x, backend="reference").others
        for backend in kernels.BACKENDS[1:]:
            try:
                kernels.explain(self.work.op, x, backend=backend)
            except ValueError:
                missing[f"m2clip {backend}"] = others[backend]
            else:
                found |= self.on_backend(backend)
        return found, missing

    def on_backend(self, backend: str) -> dict[str, Builder]:
        """The variants of a backend."""
        return {f"m2clip {backend}": partial(self.on, backend)}

    def distance(self, found: Tensor, true: Tensor) -> Tensor:
        """Error of a tensor, as a share of its norm."""
        return (found - true).norm() / true.norm()

    def worst_error(self, variant: Runnable, truth: Mapping[str, Tensor]) -> tuple[str, float]:
        """Name and error of a variant's least accurate tensor."""
        errors = {
            name: self.distance(found.double().reshape(truth[name].shape), truth[name]).nan_to_num(float("inf")).item()
            for name, found in variant.results().items()
        }
        worst = max(errors, key=lambda name: errors[name])
        return worst, errors[worst]

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        """By pass, the matrix products alone."""
        raise NotImplementedError

    def forward_flops(self) -> int:
        """Of the products of a forward pass."""
        raise NotImplementedError

    def limits(self, which: str) -> dict[str, Callable[[], object]]:
        """What is timed beside the variants of a pass."""
        return {"floor": self.floor_runs()[which]}

    def complete(self, numbers: dict[str, Any], which: str, seconds: Mapping[str, list[float]]) -> None:
        """Compare a pass's times with its limits."""
        gemms = dict(zip(PASSES, self.products, strict=True))
        numbers["flops"] = self.forward_flops() * gemms[which] // gemms[FORWARD]
        numbers["floor"]["gemms"] = gemms[which]
        for name, own in numbers["variants"].items():
            own["floor_fraction"] = ratio(seconds["floor"], seconds[name])

    def time_more(self, variants: dict[str, Any], runs: Mapping[str, Callable[[], object]], rounds: int) -> None:
        """What else is measured of the variants of a pass, into their numbers."""

    def memory_unknown(self, name: str) -> str:
        """Why a variant's peak memory cannot be measured, or nothing."""
        small = self.device.type == "cpu" and self.size < SMALL_BYTES
        return "too little to count in resident pages" if small else ""


def prepare(problem: Problem, left_out: Mapping[str, str]) -> tuple[dict[str, Runnable], dict[str, str], list[str]]:
    """Variants that agree with the reference, why the others are not timed, and complaints of those that are wrong.

    Args:
        problem: what they compute.
        left_out: reasons not to build some, by name.
    """
    builders, not_run = problem.builders()
    truth, ready, wrong = problem.exact().results(), dict[str, Runnable](), list[str]()
    for name, build in builders.items():
        if name in left_out:
            not_run[name] = left_out[name]
            continue
        try:
            variant = build()
            tensor, error = problem.worst_error(variant, truth)
        except Exception as met:  # a compiler that is missing, a backend that lacks this shape: told, not hidden
            not_run[name] = reason(met)
            continue
        if error <= problem.tolerance[problem.case.dtype]:
            ready[name] = variant
        else:
            not_run[name] = f"wrong: error {error:.1e} of {tensor}"
            wrong.append(f"{problem.case.name}: {name} is {not_run[name]}")
    return ready, not_run, wrong


def time_pass(
    problem: Problem, ready: Mapping[str, Runnable], which: str, rounds: int, warm: bool = False
) -> dict[str, Any]:
    """Times of one pass of all variants and limits, and how they compare round by round."""
    device, limits = problem.device, problem.limits(which)
    ours = {name: variant.runs()[which] for name, variant in ready.items()}
    runs = ours | limits
    # Small inputs stay in the cache, as in a network. Many calls in a row, as in training, where the processor runs
    # ahead of the GPU; but on a CPU only the first call after the caches were overwritten finds them cold.
    cold = device.type in problem.overwrites and problem.size > SMALL_BYTES and not warm
    before = overwritten_caches(device, CACHE_BYTES) if cold else None
    turn = 0.0 if cold and device.type == "cpu" else TURN_SECONDS
    calls = {name: calls_for(run, device, turn) for name, run in runs.items()}
    seconds = interleave(runs, rounds, device, calls=calls, before_turn=before)
    times: dict[str, Any] = {name: {"calls": calls[name], "seconds": summary(taken)} for name, taken in seconds.items()}
    best = {}
    for title, names in problem.baselines.items():
        if contenders := [name for name in names if name in ready]:
            best[title] = min(contenders, key=lambda name: times[name]["seconds"]["median"])
    for name in ready:
        times[name]["speedup_over"] = {title: ratio(seconds[other], seconds[name]) for title, other in best.items()}
    numbers = {
        "best": best,
        **{name: times[name] for name in limits},
        "variants": {name: times[name] for name in ready},
    }
    problem.complete(numbers, which, seconds)
    problem.time_more(numbers["variants"], ours, rounds)
    return numbers


def peak_of(problem: Problem, tiny: Problem, name: str) -> int:
    """Peak bytes of one forward and backward of a variant, in this process; the tiny problem warms up."""
    run = problem.builders()[0][name]().runs()[BOTH]
    # Compiling takes memory itself; compiled code keeps no workspace.
    warm_up = run if name in problem.compiled else tiny.builders()[0][name]().runs()[BOTH]
    return peak_bytes(run, warm_up, problem.device)


def peaks(program: str, problem: Problem, ready: Mapping[str, Runnable]) -> dict[str, dict[str, Any]]:
    """Peak bytes of one forward and backward of every variant, on a CPU in a process of its own, or why not."""
    known, unknown = dict[str, int](), dict[str, str]()
    for name, variant in ready.items():
        if why := problem.memory_unknown(name):
            unknown[name] = why
        elif problem.device.type == "cuda":
            run = variant.runs()[BOTH]
            known[name] = peak_bytes(run, run, problem.device)
        else:
            own = ["--device", str(problem.device), "--cases", problem.case.name, "--memory-of", name]
            found, why = in_own_process([program, *sys.argv[1:], *own])
            if found:
                known[name] = found["peak_bytes"]
            else:
                unknown[name] = why
    return {"peak_memory_bytes": known, "memory_unknown": unknown}
