"""Measures kernels on this GPU: the tiles of each, and which backend is fastest for an operation (`m2clip tune`).

Candidates take turns, so that a change of the clocks hits them all, and work on inputs that no cache holds. A backend
wins only if forward and backward are faster than plain PyTorch and than the same under torch.compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import functional, tuning
from .dispatch import BACKENDS, backend_states, compute_dtype, explain
from .gelu_ops import bias_gelu
from .msta_ops import msta_adapter
from .tuning import Tuned
from .weights import BranchWeights, MSTAWeights, TEDWeights, TimeLayout

REFERENCE, COMPILED = "reference", "reference, compiled"
ROUNDS = 15
_LEAST_GAIN = 1.02  # a static rule is left alone for less: that is the spread of the measurement itself


class Problem(NamedTuple):
    """One shape to tune for: clips of T frames, D token width, R bottleneck width."""

    dim: int
    width: int
    frames: int
    grid: tuple[int, int]
    clips: int
    dtype: torch.dtype
    classes: int = 400  # of the losses

    @property
    def tokens(self) -> int:
        """Of a frame, the class token included."""
        return self.grid[0] * self.grid[1] + 1


class Tunable(NamedTuple):
    """A kernel whose configuration can be chosen: `run` launches it with one."""

    kernel: str  # what its host function asks for, and with which arguments
    arguments: tuple[Any, ...]
    rule: Any  # the configuration of the static rule
    candidates: list[Any]
    run: Callable[[Any], object]


class Choice(NamedTuple):
    """What was measured: median seconds by candidate, and the winner."""

    name: str
    winner: str
    seconds: dict[str, float]
    failed: dict[str, str]  # candidates that could not run, and why


def fastest(
    name: str, candidates: Mapping[str, Callable[[], object]], defaults: Sequence[str], device: torch.device
) -> Choice:
    """Time the candidates in turns; the best of the defaults stays where nothing is clearly faster.

    Raises:
        RuntimeError: none of the defaults runs.
    """
    failed: dict[str, str] = {}
    for candidate, run in candidates.items():
        try:
            run()  # compiles; a tile may ask for more shared memory than there is
            _synchronise(device)
        except Exception as error:
            failed[candidate] = f"{type(error).__name__}: {error}".splitlines()[0]
    if all(default in failed for default in defaults):
        raise RuntimeError(f"{name} does not run here: {failed[defaults[0]]}")
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates if candidate not in failed}
    for _ in range(ROUNDS):
        for candidate, taken in times.items():
            taken.append(_seconds(candidates[candidate], device))
    seconds = {candidate: median(taken) for candidate, taken in times.items()}
    best, to_beat = (min(group, key=seconds.__getitem__) for group in (seconds, set(defaults) - failed.keys()))
    return Choice(name, best if seconds[best] * _LEAST_GAIN < seconds[to_beat] else to_beat, seconds, failed)


def best_config(tunable: Tunable, device: torch.device) -> tuple[Any, Choice]:
    """The fastest configuration of a kernel, and what was measured."""
    configs = {str(tuple(config)): config for config in (tunable.rule, *tunable.candidates)}
    runs = {name: partial(tunable.run, config) for name, config in configs.items()}
    choice = fastest(tuning.key(tunable.kernel, *tunable.arguments), runs, [str(tuple(tunable.rule))], device)
    return configs[choice.winner], choice


def best_backend(op: str, run: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> Choice:
    """The fastest backend of an operation, forward and backward: `run` takes the inputs and `backend`."""
    runs = {REFERENCE: _training_pass(partial(run, backend=REFERENCE), inputs)}
    runs[COMPILED] = _training_pass(torch.compile(partial(run, backend=REFERENCE)), inputs)
    for backend in BACKENDS[1:]:
        try:
            explain(op, inputs[0], backend=backend)
        except ValueError:
            continue
        runs[backend] = _training_pass(partial(run, backend=backend), inputs)
    choice = fastest(op, runs, [REFERENCE, COMPILED], device)
    return choice._replace(winner=REFERENCE) if choice.winner == COMPILED else choice


def tune(problem: Problem, device: torch.device, report: Callable[[Choice], None]) -> Path:
    """Measure tiles, then winners with these tiles, for one shape; returns the file they are kept in.

    Args:
        problem: the shape; what is found holds for its widths, frames and dtype at any batch size.
        device: whose measurements these are.
        report: called with every choice as it is made.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if backend_states()["triton"].available:
        from .triton.tunables import tunables

        for tunable in tunables(problem, device):
            config, choice = best_config(tunable, device)
            report(choice)
            tuning.save(name, Tuned(configs={choice.name: list(config)}))
    for op, (run, inputs, width) in _operations(problem, device).items():
        choice = best_backend(op, run, inputs, device)
        report(choice)
        dtype = compute_dtype(op, inputs[0])
        path = tuning.save(name, Tuned({tuning.key(op, dtype, width): choice.winner}))
    return path


def _operations(problem: Problem, device: torch.device) -> dict[str, tuple[Callable[..., Tensor], list[Tensor], int]]:
    """What `best_backend` takes for every operation that has several backends, and the width its winner is kept by."""

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=problem.dtype)

    def ted(x: Tensor, *weights: Tensor, backend: str) -> Tensor:
        branches = TEDWeights(BranchWeights(*weights[:6]), BranchWeights(*weights[6:]))
        return functional.ted_adapter(x, branches, problem.frames, grid=problem.grid, backend=backend)

    dim, width = problem.dim, problem.width
    frames = problem.clips * problem.frames
    projections = [values(width, dim) * dim**-0.5, values(width), values(dim, width) * width**-0.5, values(dim)]
    weights = [
        tensor
        for taps in ((1, 3), (1, 3, 3))
        for tensor in (*projections[:2], values(width, *taps), values(width), *projections[2:])
    ]
    videos, classes = values(2 * problem.clips, 512), values(problem.classes, 512)
    labels = torch.arange(2 * problem.clips, device=device) % problem.classes
    scale = torch.tensor(100.0, device=device)

    def cross_entropy(v: Tensor, w: Tensor, scale: Tensor, *, backend: str) -> Tensor:
        return functional.cosine_cross_entropy(v, w, labels, scale, backend=backend)

    def contrast(v: Tensor, w: Tensor, scale: Tensor, *, backend: str) -> Tensor:
        return functional.soft_target_kl(v, w, labels, scale, backend=backend)

    def msta(x: Tensor, base: Tensor, *weights: Tensor, backend: str) -> Tensor:
        fields: dict[str, Any] = dict(zip(MSTAWeights._fields, weights, strict=False))
        time = TimeLayout(problem.frames)
        return msta_adapter(x, base, MSTAWeights(**fields, after_up=dim % width > 0), time, backend=backend)

    tokens = values(frames, problem.tokens, dim)
    shared = [values(width, width) * width**-0.5, values(width)]
    msta_weights = [*projections[:2], *shared, *projections[2:], values(dim, 1, 3), values(dim)]
    return {
        "ted_adapter": (ted, [tokens, *weights], width),
        "bottleneck_adapter": (functional.bottleneck_adapter, [tokens, *projections], width),
        "msta_adapter": (msta, [tokens, values(*tokens.shape), *msta_weights], width),
        "bias_gelu": (bias_gelu, [values(frames, problem.tokens, 4 * dim), values(4 * dim)], 0),
        "cosine_cross_entropy": (cross_entropy, [videos, classes, scale], 0),
        "soft_target_kl": (contrast, [videos, values(2 * problem.clips, 512), scale], 0),
    }


def _training_pass(run: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward of an operation, with gradients to all of its inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def both() -> object:
        output = run(*leaves)
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    return both


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    run()
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event) / 1000


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
