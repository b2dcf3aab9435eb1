"""Compares every operation on every backend that this machine can run with the reference in double precision.

The bound is no constant: a kernel may be about as far off as plain PyTorch is in the same dtype (exactness.py). Errors
are shares of a tensor's largest true value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from .build_info import instruction_sets
from .dispatch import BACKENDS, backend_states, device_of, explain
from .exactness import judge
from .native import extension as native
from .selfcheck_cases import Case, all_cases
from .verification.plans import plans_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ONE_FOR_ALL = "all"  # stands for the backend of an operation that has one implementation
ONE_FOR_ALL_ON_GPU = "all, on the GPU"
_PROCESSES = 8


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
    kind: str = "largest"  # error, or "usual": see exactness.py

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


def run_checks(
    backends: Sequence[str], report: Callable[[int, int], None] | None = None, everything: bool = True
) -> list[Check]:
    """Compare backends with the reference, the native one with every instruction set of this processor.

    Args:
        backends: as `backends_to_check` gives them; operations with one implementation are checked in any case.
        report: called with the number of finished cases and that of all.
        everything: all cases in all dtypes; otherwise the dtypes take turns, a case each.
    """
    work = [
        (number, dtype)
        for number, _ in enumerate(all_cases())
        for turn, dtype in enumerate(DTYPES)
        if everything or turn == number % len(DTYPES)
    ]
    checks: list[Check] = []
    run = _in_parallel if torch.cuda.is_available() else _in_turn
    for done, found in enumerate(run(work, backends), 1):
        if report:
            report(done, len(work))
        checks += found
    return checks


def _in_turn(work: Sequence[tuple[int, str]], backends: Sequence[str]) -> Iterator[list[Check]]:
    cases = list(all_cases())
    for number, dtype in work:
        yield list(_check_case(cases[number], dtype, backends))


def _in_parallel(work: Sequence[tuple[int, str]], backends: Sequence[str]) -> Iterator[list[Check]]:
    """In several processes, because kernels for a GPU take longer to compile than to run."""
    with ProcessPoolExecutor(min(_PROCESSES, len(os.sched_getaffinity(0))), get_context("spawn")) as pool:
        found = [pool.submit(_check_number, one, backends) for one in work]
        for one, future in zip(work, found, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:  # by this case or by another, which then ends all
                yield [check for backend in backends for check in _check_alone(one, backend)]


def _check_alone(work: tuple[int, str], backend: str) -> list[Check]:
    """A case in a process of its own, whose end is the kernel's doing."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_check_number, work, [backend]).result()
        except BrokenProcessPool:
            case, dtype = list(all_cases())[work[0]], work[1]
            return [Check(case.op, backend, dtype, case.name, "output", math.inf, 0.0, "its process was ended")]


def _check_number(work: tuple[int, str], backends: Sequence[str]) -> list[Check]:
    return next(_in_turn([work], backends))


def _check_case(case: Case, dtype: str, backends: Sequence[str]) -> Iterator[Check]:
    inputs = {name: tensor.to(DTYPES[dtype]) for name, tensor in case.inputs().items()}
    if case.reference:
        able = [ONE_FOR_ALL, ONE_FOR_ALL_ON_GPU] if torch.cuda.is_available() else [ONE_FOR_ALL]
    else:
        able = [name for name in backends if _can_run(case, inputs, name)]
        able += [f"{name}/{plan}" for name in able for plan in _plans(case, inputs, name)]
    if not able:
        return
    truth = results(case, {name: tensor.double() for name, tensor in inputs.items()}, "reference")
    eager = results(case, inputs, "reference")
    for backend in able:
        sets = instruction_sets() if backend in ("native", ONE_FOR_ALL) else []
        for name in sets or [""]:
            check = partial(Check, case.op, f"{backend} {name}".strip(), dtype, case.name)
            try:
                with _instruction_set(name):
                    device = "cuda" if backend == ONE_FOR_ALL_ON_GPU else device_of(backend.partition("/")[0])
                    found = {name: tensor.cpu() for name, tensor in results(case, inputs, backend, device).items()}
            except Exception as error:  # a kernel that raises is wrong, and the others are still to be checked
                yield check("output", math.inf, 0.0, f"{type(error).__name__}: {error}")
                continue
            for tensor, true in truth.items():
                verdict = judge(found[tensor], eager[tensor], true, tensor != "output")
                yield check(tensor, verdict.error, verdict.bound, kind=verdict.kind)


def _plans(case: Case, inputs: dict[str, Tensor], backend: str) -> list[str]:
    """The plans of ted_adapter on a backend, each of which is checked beside what the backend takes by itself."""
    if case.call is None:
        return []
    dtype = next(iter(inputs.values())).dtype
    return plans_of(case.call._replace(dtype=dtype), backend, torch.device(device_of(backend)))


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


def results(
    case: Case, inputs: dict[str, Tensor], backend: str, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Output and all gradients, on the device that they were computed on."""
    leaves = {name: tensor.detach().to(device).requires_grad_() for name, tensor in inputs.items()}
    run = case.reference if case.reference and backend == "reference" else case.run
    output = run(leaves, backend)
    gradients = torch.autograd.grad(output, list(leaves.values()), case.output_gradient(output))
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), **named}
