"""Measures kernels on this GPU: the tiles of each, and which backend is fastest for an operation (`m2clip tune`).

Candidates take turns, so that a change of the clocks hits them all, and work on inputs that no cache holds. A backend
wins only if forward and backward are faster than plain PyTorch and than the same under torch.compile.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch import BACKENDS, backend_states, compute_dtype, explain
from . import store
from .candidates import KernelCandidates, Shape, operations
from .store import Measurements

REFERENCE, COMPILED = "reference", "reference, compiled"
ROUNDS = 15
_LEAST_GAIN = 1.02  # a static rule is left alone for less: that is the spread of the measurement itself


class Comparison(NamedTuple):
    """What was measured: median seconds by candidate, and the winner."""

    name: str
    winner: str
    seconds: dict[str, float]
    failed: dict[str, str]  # candidates that could not run, and why


def fastest(
    name: str, candidates: Mapping[str, Callable[[], object]], defaults: Sequence[str], device: torch.device
) -> Comparison:
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
    return Comparison(name, best if seconds[best] * _LEAST_GAIN < seconds[to_beat] else to_beat, seconds, failed)


def best_config(kernel: KernelCandidates, device: torch.device) -> tuple[Any, Comparison]:
    """The fastest configuration of a kernel, and what was measured."""
    configs = {str(tuple(config)): config for config in (kernel.rule, *kernel.others)}
    runs = {name: partial(kernel.run, config) for name, config in configs.items()}
    comparison = fastest(store.key(kernel.kernel, *kernel.arguments), runs, [str(tuple(kernel.rule))], device)
    return configs[comparison.winner], comparison


def best_backend(op: str, run: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> Comparison:
    """The fastest backend of an operation, forward and backward: `run` takes the inputs and `backend`."""
    runs = {REFERENCE: _training_pass(partial(run, backend=REFERENCE), inputs)}
    runs[COMPILED] = _training_pass(torch.compile(partial(run, backend=REFERENCE)), inputs)
    for backend in BACKENDS[1:]:
        try:
            explain(op, inputs[0], backend=backend)
        except ValueError:
            continue
        runs[backend] = _training_pass(partial(run, backend=backend), inputs)
    comparison = fastest(op, runs, [REFERENCE, COMPILED], device)
    return comparison._replace(winner=REFERENCE) if comparison.winner == COMPILED else comparison


def tune(shape: Shape, device: torch.device, report: Callable[[Comparison], None]) -> Path:
    """Measure tiles and plans, then winners with these, for one shape; returns the file they are kept in.

    Args:
        shape: what is found holds for its widths, frames and dtype at any batch size.
        device: whose measurements these are.
        report: called with every comparison as it is made.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for backend in ("triton", "cuda"):
        if not backend_states()[backend].available:
            continue
        for kernel in importlib.import_module(f"..{backend}.candidates", __package__).kernel_candidates(shape, device):
            config, comparison = best_config(kernel, device)
            report(comparison)
            store.save(name, Measurements(configs={comparison.name: list(config)}))
    for op, (run, inputs, width) in operations(shape, device).items():
        comparison = best_backend(op, run, inputs, device)
        report(comparison)
        dtype = compute_dtype(op, inputs[0])
        path = store.save(name, Measurements({store.key(op, dtype, width): comparison.winner}))
    return path


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
