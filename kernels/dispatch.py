"""Which backend runs an operation, and why.

``backend="auto"`` takes the fastest one that has been measured to pay on the device; a backend asked for by name
runs, or the reason why it cannot is raised.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from . import cuda, native, tuning
from .implementations import implemented

BACKENDS = ("reference", "native", "triton", "cuda")
_LOSSES = ("cosine_cross_entropy", "soft_target_kl", "masked_word_loss")
OPERATIONS = ("ted_adapter", "bottleneck_adapter", "msta_adapter", "bias_gelu", *_LOSSES)

# A call of bottleneck_adapter costs more natively and its passes over the tokens cost less: even at about this many
# values, measured on a CPU with AVX-512 for R of 64 and 384, forward and backward.
_FEW_VALUES = 2**17
_MASKED_WORDS = "masked_word_loss is one implementation for all devices, made of torch's own products"

_DTYPES = {
    "native": tuple(native.DTYPES),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "cuda": tuple(cuda.DTYPES),
}
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on CPU tensors, slowly

_HAS_TRITON = find_spec("triton") is not None
_in_force: ContextVar[str] = ContextVar("m2clip_backend", default="auto")


class BackendState(NamedTuple):
    """A backend of this installation: whether it can run anything here, and why (or what it is)."""

    name: str
    available: bool
    reason: str


class Choice(NamedTuple):
    """The backend that runs an operation, why, and for every other one why it does not."""

    op: str
    backend: str
    reason: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend} ({self.reason})"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.others.items()])


def backend_states() -> dict[str, BackendState]:
    """State of every backend of this installation, by name."""
    states = []
    for name in BACKENDS:
        missing = _missing(name)
        states.append(BackendState(name, missing is None, missing or _what_it_is(name)))
    return {state.name: state for state in states}


def _what_it_is(name: str) -> str:
    if name == "triton":
        return "Triton kernels" + (", by the interpreter on the CPU" if _INTERPRETED else "")
    if name == "cuda":
        return f"compiled kernels for NVIDIA GPUs, sm_{cuda.extension.architectures.replace(' ', ', sm_')}"
    if name == "native":
        return f"compiled kernels for the CPU, {native.extension.instruction_set()}"
    return "plain PyTorch, any device"


def _missing(name: str) -> str | None:
    """Why this installation does not have a backend, or None if it does."""
    if name == "triton" and not _HAS_TRITON:
        return "Triton is not installed"
    # Not asked at import: the answer starts the CUDA driver, which takes time and must not happen before a fork.
    if name == "triton" and not _INTERPRETED and not torch.cuda.is_available():
        return "Triton kernels need an NVIDIA GPU, and PyTorch sees none"
    if name == "cuda" and cuda.extension is None:
        return f"the compiled extension m2clip._cuda is missing: {cuda.MISSING}"
    if name == "cuda" and not torch.cuda.is_available():
        return "CUDA kernels need an NVIDIA GPU, and PyTorch sees none"
    if name == "native" and native.extension is None:
        return f"the compiled extension m2clip._native is missing: {native.MISSING}"
    return None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let every operation called with ``backend="auto"`` inside the block run on this backend.

    Args:
        name: a backend, which must then be able to run whatever is called, or "auto".

    Raises:
        ValueError: an unknown backend, or one that this installation does not have.
    """
    _require_known(name)
    missing = _missing(name)
    if missing is not None:
        raise ValueError(f"backend {name!r} is not available here: {missing}")
    token = _in_force.set(name)
    try:
        yield
    finally:
        _in_force.reset(token)


def choose(op: str, x: Tensor, backend: str, width: int = 0) -> str:
    """Name of the backend that runs `op` on x.

    Args:
        op: name of the operation.
        x: its first argument.
        backend: "auto" or the name of one.
        width: R of an adapter, on which the winner of a GPU depends.

    Raises:
        ValueError: an unknown backend, or one asked for by name that cannot run this.
    """
    if backend == "auto":
        backend = _in_force.get()
    if backend == "auto":
        name = _winner(op, x, width)
        return name if _refusal(name, op, x) is None and _slower(name, op, x, width) is None else "reference"
    _require_known(backend)
    refusal = _refusal(backend, op, x)
    if refusal is not None:
        raise ValueError(f"backend {backend!r} cannot run {op} here: {refusal}")
    return backend


def has_kernel(op: str, x: Tensor) -> bool:
    """Whether "auto" runs `op` on x with more than the reference, for callers that have another way to compute it.

    Unlike :func:`choose`, a backend in force that has no kernel for it is no error.
    """
    in_force = _in_force.get()
    if in_force in ("auto", "reference"):
        return choose(op, x, "auto") != "reference"
    return _refusal(in_force, op, x) is None


def explain(op: str, x: Tensor, *, backend: str = "auto", width: int = 0) -> Choice:
    """Which backend would run an operation, and why not the others.

    Args:
        op: name of a public operation, "ted_adapter" for instance.
        x: its first argument, of the shape, dtype and device in question (a meta tensor stands for no device).
        backend: as it would be passed to the operation.
        width: R of an adapter; on a GPU the winner is known by it.

    Raises:
        ValueError: an unknown operation, or a backend asked for by name that cannot run this.
    """
    if op not in OPERATIONS:
        raise ValueError(f"unknown operation {op!r}; choose from {', '.join(OPERATIONS)}")
    chosen = choose(op, x, backend, width)
    asked = backend if backend != "auto" else _in_force.get()
    others = {
        name: _refusal(name, op, x) or _slower(name, op, x, width) or f"{chosen} comes first on {x.device.type}"
        for name in BACKENDS
        if name != chosen
    }
    if asked != "auto":
        reason = "asked for by name"
    elif chosen == "reference":
        reason = "no other backend runs or pays here"
    else:
        reason = f"measured fastest on {x.device.type}"
    return Choice(op, chosen, reason, others)


def _refusal(name: str, op: str, x: Tensor) -> str | None:
    """Why a backend cannot run `op` on x, or None if it can."""
    missing = _missing(name)
    if name == "reference" or missing is not None:
        return missing
    if op == "masked_word_loss":
        return _MASKED_WORDS
    if not implemented(op, name):
        return f"it has no kernel for {op}"
    device = device_of(name)
    if x.device.type != device:
        return f"it runs on a {device} device, and the tensors are on {x.device}"
    if device == "cuda" and tuning.too_old(x.device.index):
        return "it needs a GPU of compute capability 8.0 or newer"
    dtype = compute_dtype(op, x)
    if dtype not in _DTYPES[name]:
        return f"it has no kernels for {dtype}"
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        return "it cannot run inside a torch.func transform"
    return None


def device_of(backend: str) -> str:
    """The kind of device whose tensors a backend takes; of the reference, which takes any, the CPU."""
    return "cuda" if backend in ("triton", "cuda") and not _INTERPRETED else "cpu"


def _winner(op: str, x: Tensor, width: int) -> str:
    """The backend that has been measured to be fastest on the device of x; the reference where nothing was."""
    if x.device.type == "cuda":
        for found in tuning.winners(x.device.index, op, compute_dtype(op, x)).split():
            measured_width, name = found.split("=")
            if int(measured_width) == width:
                return name
        return "reference"
    return "native" if x.device.type == "cpu" else "reference"


def _slower(name: str, op: str, x: Tensor, width: int) -> str | None:
    """Why a backend that could run `op` on x is not chosen by "auto", or None if it pays."""
    if name in ("triton", "cuda"):
        winner = _winner(op, x, width)
        if winner == name:
            return None
        if winner == "reference":
            return "not measured to win on this GPU for this dtype and width, so only by name (see `m2clip tune`)"
        return f"measured slower than {winner} on this GPU"
    if name == "native" and op == "bottleneck_adapter" and x.numel() < _FEW_VALUES:
        return f"slower than the reference on so little: {x.numel()} values, fewer than {_FEW_VALUES}"
    return None


def compute_dtype(op: str, x: Tensor) -> torch.dtype:
    """The dtype an operation computes in: of products autocast's where it is on; never less than fp32 for a loss."""
    device = x.device.type
    if op in _LOSSES:
        return torch.promote_types(x.dtype, torch.float32)
    if op == "bias_gelu":
        return x.dtype
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _require_known(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {name!r}; choose from {', '.join(('auto', *BACKENDS))}")
