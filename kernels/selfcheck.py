"""Compares every operation on every backend that this machine can run with the reference in double precision.

The bound is no constant: a kernel may be off by at most twice (gradients: three times) as much as plain PyTorch is in
the same dtype, plus a rounding of the result. Errors are shares of a tensor's largest true value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import native
from .build_info import instruction_sets
from .dispatch import BACKENDS, backend_states, device_of, explain
from .selfcheck_cases import Case, all_cases

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUTPUT_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
ONE_FOR_ALL = "all"  # stands for the backend of an operation that has one implementation
ONE_FOR_ALL_ON_GPU = "all, on the GPU"
_FP32_ROUNDINGS = 4 * torch.finfo(torch.float32).eps


class Check(NamedTuple):
    """One tensor of one case: how far a backend is from the truth, and how far it may be; infinite where it raised."""

    op: str
    backend: str  # with its instruction set, as in "native avx2"
    dtype: str
    case: str
    tensor: str  # "output" or "gradient of ..."
    error: float
    bound: float
    message: str = ""  # of what the backend raised

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # a NaN does not pass


def backends_to_check(wanted: str | None = None) -> list[str]:
    """The backends that can run here, or only the one that is wanted.

    Raises:
        ValueError: the wanted one is unknown or not available here; one line.
    """
    states = backend_states()
    if wanted is None:
        return [name for name in BACKENDS[1:] if states[name].available]
    if wanted not in BACKENDS[1:]:
        raise ValueError(f"{wanted!r} is no backend to check; choose from {', '.join(BACKENDS[1:])}")
    if not states[wanted].available:
        raise ValueError(f"backend {wanted!r} is not available here: {states[wanted].reason}")
    return [wanted]


def run_checks(backends: Sequence[str], report: Callable[[int, int], None] | None = None) -> list[Check]:
    """Run all cases in all dtypes that a backend has, the native one with every instruction set of this processor.

    Args:
        backends: as `backends_to_check` gives them; operations with one implementation are checked in any case.
        report: called with the number of finished cases and that of all.
    """
    work = [(case, dtype) for case in all_cases() for dtype in DTYPES]
    checks: list[Check] = []
    for done, (case, dtype) in enumerate(work):
        if report:
            report(done, len(work))
        checks += _check_case(case, dtype, backends)
    return checks


def _check_case(case: Case, dtype: str, backends: Sequence[str]) -> Iterator[Check]:
    inputs = {name: tensor.to(DTYPES[dtype]) for name, tensor in case.inputs().items()}
    if case.reference:
        able = [ONE_FOR_ALL, ONE_FOR_ALL_ON_GPU] if torch.cuda.is_available() else [ONE_FOR_ALL]
    else:
        able = [name for name in backends if _can_run(case, inputs, name)]
    if not able:
        return
    truth = _results(case, {name: tensor.double() for name, tensor in inputs.items()}, "reference")
    eager = _results(case, inputs, "reference")
    for backend in able:
        sets = instruction_sets() if backend in ("native", ONE_FOR_ALL) else []
        for name in sets or [""]:
            check = partial(Check, case.op, f"{backend} {name}".strip(), dtype, case.name)
            try:
                with _instruction_set(name):
                    found = _results(case, inputs, backend)
            except Exception as error:  # a kernel that raises is wrong, and the others are still to be checked
                yield check("output", math.inf, 0.0, f"{type(error).__name__}: {error}")
                continue
            for tensor, true in truth.items():
                factor = OUTPUT_FACTOR if tensor == "output" else GRADIENT_FACTOR
                bound = factor * _error(eager[tensor], true) + _rounding(found[tensor].dtype)
                yield check(tensor, _error(found[tensor], true), bound)


def _can_run(case: Case, inputs: dict[str, Tensor], backend: str) -> bool:
    try:
        explain(case.op, next(iter(inputs.values())).to(device_of(backend)), backend=backend)
    except ValueError:
        return False
    return True


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    """Run the compiled kernels on this instruction set; an empty name changes nothing."""
    if not name:
        yield
        return
    before = native.extension.instruction_set()
    native.extension.select_instruction_set(name)
    try:
        yield
    finally:
        native.extension.select_instruction_set(before)


def _results(case: Case, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Output and all gradients, on the CPU."""
    device = "cuda" if backend == ONE_FOR_ALL_ON_GPU else device_of(backend)
    leaves = {name: tensor.detach().to(device).requires_grad_() for name, tensor in inputs.items()}
    run = case.reference if case.reference and backend == "reference" else case.run
    output = run(leaves, backend)
    gradients = torch.autograd.grad(output, list(leaves.values()), case.output_gradient(output))
    named = {f"gradient of {name}": gradient.cpu() for name, gradient in zip(leaves, gradients, strict=True)}
    return {"output": output.detach().cpu(), **named}


def _error(found: Tensor, true: Tensor) -> float:
    """Largest difference as a share of the largest true value; a tensor that should be 0 counts as it is."""
    largest = float(true.abs().max())
    return float((found.double() - true).abs().max()) / (largest or 1.0)


def _rounding(dtype: torch.dtype) -> float:
    """Absolute term: half a unit in the last place of the largest value, or some roundings of an fp32 sum."""
    return max(torch.finfo(dtype).eps / 4, _FP32_ROUNDINGS)
