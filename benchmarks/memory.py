"""Memory of this process, and the peak of a call above what was held before it."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any], warm_up: Callable[[], Any], device: torch.device) -> int:
    """Largest memory during two calls less the memory before the first, results of a call included.

    Two calls, because the second may find workspaces that the first has kept: they count too.

    On a GPU PyTorch's allocator counts exactly. On a CPU the kernel's count of resident pages is read, because it sees
    every allocation: tensors, scratch of oneDNN, MKL and of extension modules. Its high-water mark can be reset, so
    that imports and the warm-up do not count. It is exact only in a process in which freed memory goes back at once:
    use :func:`in_own_process`.

    Args:
        run: what is measured.
        warm_up: loads and compiles what `run` needs; memory that it leaves behind is not counted.
        device: where the tensors are.

    Raises:
        OSError: no /proc, or a high-water mark that cannot be reset (Linux only).
    """
    warm_up()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        before = status_bytes("VmRSS")
        RESET.write_text("5")
    for _ in range(2):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A field of this process's status: "VmRSS", what is resident, or "VmHWM", the most that ever was."""
    match = re.search(field + r":\s+(\d+) kB", STATUS.read_text())
    if match is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(match[1]) * 1024


def resident_gb() -> float:
    """Resident memory of this process."""
    return status_bytes("VmRSS") / 2**30


def peak_resident_gb() -> float:
    """Largest resident memory of this process since its start."""
    return status_bytes("VmHWM") / 2**30


def in_own_process(arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run a Python script that prints one JSON object as its last line; ({}, reason) where it fails."""
    # glibc raises the size from which it takes pages of their own, and gives them back at once, after the first large
    # free. A fixed size keeps pages of freed tensors from hiding in the heap before the call that is measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    child = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        return {}, (child.stderr.strip().splitlines() or ["no output"])[-1]
    return json.loads(lines[-1]), ""


class KeptTensors:
    """Counts what forward passes within the context keep for the backward pass, without the parameters.

    Args:
        model: whose parameters are in memory in any case.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._kept: dict[int, torch.UntypedStorage] = {}  # by its place: no other one takes it while this one is held
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._held:
            self._kept[storage.data_ptr()] = storage
        return tensor

    def __enter__(self) -> KeptTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        self.bytes = sum(storage.nbytes() for storage in self._kept.values())
        self._kept.clear()
