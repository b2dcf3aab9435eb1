"""What a process that verifies does: it reads keys as lines of JSON, and answers each with what it found."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..exactness import GRADIENT_FACTOR, OUTPUT_FACTOR, USUAL_FACTOR, judge
from ..selfcheck import results
from .cases import VerificationCase, cases
from .keys import Key, software
from .plans import plans_of

_POISON = (2**10, 2**14, 2**18, 2**22)  # values; allocators reuse memory of such sizes


def main() -> None:
    """Answer until the input ends, or the process that asks is gone."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print belongs elsewhere

    def say(**said: Any) -> None:
        channel.write(json.dumps(said) + "\n")
        channel.flush()

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    say(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        say(**answer(Key.of_record(question["key"]), question["index"], lambda waits: say(waits=waits)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def answer(key: Key, index: int, waits: Callable[[bool], None]) -> dict[str, Any]:
    """What is said of a key; an error of this process or its device says nothing of the kernel that would last."""
    device = torch.device("cuda", index) if key.device.kind == "cuda" else torch.device("cpu")
    try:
        if software(key.backend, device) != key.software:
            raise RuntimeError("the process that verifies finds another installation")
        message, error = verify(key, device, waits)
    except torch.OutOfMemoryError:
        return _said("there was no memory to verify it", lasting=False)
    except Exception as problem:
        line = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        return _said(f"it raised {line}", lasting=False, broken=True)
    return _said(message, error)


def _said(message: str, error: float = 0.0, lasting: bool = True, broken: bool = False) -> dict[str, Any]:
    return {"passed": not message, "error": error, "message": message, "lasting": lasting, "broken": broken}


def verify(key: Key, device: torch.device, waits: Callable[[bool], None]) -> tuple[str, float]:
    """What is wrong with a kernel, empty where nothing is, and its worst error as a multiple of PyTorch's own.

    Args:
        key: the call and the backend; what it says of machine and software is taken as given.
        device: where it runs.
        waits: called with True when everything is launched and the device has to be waited for, then with False.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32" if "tf32" in key.call.layout.split() else "ieee"
    worst, message = 0.0, ""
    for case in cases(key.call):
        for backend in _ways(key.backend, case, device):
            wrong, error = _compare(case, backend, key, device, waits)
            worst, message = max(worst, error), message or wrong
    return message, worst


def _ways(backend: str, case: VerificationCase, device: torch.device) -> list[str]:
    """The backend, and where the addresses of tensors decide on its plan every plan that they may lead to."""
    if backend != "cuda":
        return [backend]
    return [f"cuda/{plan}" for plan in plans_of(case.call, "cuda", device)] or ["cuda"]


def _compare(
    case: VerificationCase, backend: str, key: Key, device: torch.device, waits: Callable[[bool], None]
) -> tuple[str, float]:
    inputs = {name: tensor.to(device, case.dtype) for name, tensor in case.case.inputs().items()}

    def run(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(device.type, key.call.dtype, enabled=case.autocast):
            return results(case.case, tensors, name, device)

    truth = results(case.case, {name: tensor.double() for name, tensor in inputs.items()}, "reference", device)
    eager = run("reference", inputs)
    for size in _POISON:  # memory that a kernel forgets to write must not hold right values by luck
        torch.full((size,), math.nan, device=device)
    found = run(backend, inputs)
    again = run(backend, inputs)
    waits(True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    waits(False)
    worst, message = 0.0, ""
    for tensor, true in truth.items():
        found_here = judge(found[tensor], eager[tensor], true, tensor != "output")
        factor = (
            USUAL_FACTOR if found_here.kind == "usual" else GRADIENT_FACTOR if tensor != "output" else OUTPUT_FACTOR
        )
        times = factor * found_here.error / (found_here.bound or 1.0)
        if not found_here.passed and not message:
            message = f"{tensor} of {case.case.name}: error {times:.1f}x PyTorch's, allowed {factor:g}x"
        if not torch.equal(found[tensor], again[tensor]) and not message:
            message = f"{tensor} of {case.case.name}: two runs differ"
        worst = max(worst, times if times < 1e6 else 1e6)  # JSON knows no infinity
    return message, worst
