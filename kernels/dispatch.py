"""Which backend runs an operation, and why.

``backend="auto"`` takes compiled kernels on a CPU, and on a GPU those that were verified there (`verification`). A
backend asked for by name runs, or the reason why it cannot is raised.
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

from .cuda import extension as cuda
from .native import extension as native
from .ops.checks import check_count, check_float
from .ops.operator import IMPLEMENTATIONS, watched
from .torch_private import constant_to_compilers, transformed
from .tuning import store
from .verification import choices
from .verification.decide import FEW_VALUES, REFERENCE, Decision
from .verification.keys import USUAL, Call, with_precision

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
# The backends of a kind of device that run under "auto" once they were verified. C++ on a CPU was proven where it was
# built: every processor of an instruction set computes the same.
VERIFIED = {"cuda": ("triton", "cuda")}
IN_FORCE = "M2CLIP_BACKEND"  # names a backend in place of "auto" for a whole process
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on CPU tensors, slowly

_HAS_TRITON = find_spec("triton") is not None
_in_force: ContextVar[str] = ContextVar("m2clip_backend", default=os.environ.get(IN_FORCE) or "auto")
# The same for torch.compile before 2.14, which follows no ContextVar: what was set last, by whichever thread.
_in_force_last = _in_force.get()
_FOLLOWS_CONTEXT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


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
    if name in ("triton", "cuda") and torch.version.hip is not None:
        title = {"triton": "Triton", "cuda": "CUDA"}[name]
        return f"{title} kernels are for NVIDIA GPUs, and this PyTorch is for AMD's"
    # Not asked at import: the answer starts the CUDA driver, which takes time and must not happen before a fork.
    if name == "triton" and not _INTERPRETED and not torch.cuda.is_available():
        return "Triton kernels need an NVIDIA GPU, and PyTorch sees none"
    if name == "cuda" and cuda.extension is None:
        return f"the compiled extension m2clip.kernels._cuda is missing: {cuda.MISSING}"
    if name == "cuda" and not torch.cuda.is_available():
        return "CUDA kernels need an NVIDIA GPU, and PyTorch sees none"
    if name == "native" and native.extension is None:
        return f"the compiled extension m2clip.kernels._native is missing: {native.MISSING}"
    return None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let every operation called with ``backend="auto"`` inside the block run on this backend.

    Args:
        name: a backend, which must then be able to run whatever is called, or "auto".

    Raises:
        ValueError: an unknown backend, or one that this installation does not have.
    """
    require_available(name)
    global _in_force_last
    token, before = _in_force.set(name), _in_force_last
    _in_force_last = name
    try:
        yield
    finally:
        _in_force.reset(token)
        _in_force_last = before


def backend_in_force() -> str:
    """What "auto" means at this place."""
    return _in_force.get() if _FOLLOWS_CONTEXT or not torch.compiler.is_compiling() else _in_force_last


def choose(op: str, x: Tensor, backend: str, width: int = 0, layout: str = "", columns: int | None = None) -> str:
    """Name of the backend that runs `op` on x, perhaps with a plan after a slash.

    Args:
        op: name of the operation.
        x: its first argument.
        backend: "auto" or the name of one, perhaps with a plan.
        width: R of an adapter.
        layout: branches and switches, as `verification.keys` words them.
        columns: width of the tokens or features, if it is not that of x.

    Raises:
        ValueError: an unknown backend, or one asked for by name that cannot run this.
    """
    if backend == "auto":
        backend = backend_in_force()
    if backend == "auto":
        if _traced_for_others():
            return REFERENCE
        if x.device.type in VERIFIED:
            return _verified(op, x, width, layout, columns or x.shape[-1], _call_dtype(op, x))
        return "native" if _refusal("native", op, x) is None and _slower("native", op, x) is None else REFERENCE
    name = backend.partition("/")[0]
    _require_known(name)
    refusal = _refusal(name, op, x)
    if refusal is not None:
        raise ValueError(f"backend {name!r} cannot run {op} here: {refusal}")
    return backend


def _call_dtype(op: str, x: Tensor) -> torch.dtype:
    """What a call is known by: kernels of losses read features as they come."""
    return x.dtype if op in _LOSSES else compute_dtype(op, x)


def _verified(op: str, x: Tensor, width: int, layout: str, dim: int, dtype: torch.dtype) -> str:
    """The kernel that runs a call on a device whose kernels are verified, or the reference."""
    if transformed() or op not in IMPLEMENTATIONS or _few(op, x):
        return REFERENCE
    autocast = dtype != x.dtype
    if torch.compiler.is_compiling():
        for known in _traced_choices(x.device.type, x.device.index, op, layout, dtype, autocast).split(";"):
            sizes, _, backend = known.partition("=")
            if sizes and dim == int(sizes.partition(" ")[0]) and width == int(sizes.partition(" ")[2]):
                return backend
        _tell_unprepared(op, dtype)
        return REFERENCE
    return _decision(Call(op, with_precision(layout, dtype, autocast), dim, width, dtype), x).backend


def _decision(call: Call, x: Tensor) -> Decision:
    """What was decided for a call, or is decided now."""
    found = choices.chosen(call, x.device)
    if found is not None:
        return found
    return choices.settle([call], numbered(x.device), able, *obstacle(x))[call]


def obstacle(x: Tensor) -> tuple[str, bool]:
    """Why nothing can be verified in the middle of what is going on, and whether what is decided then stays."""
    if watched(x):
        return "its tensors are fake, or somebody watches every operator", False
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is captured", True
    return "", True


@constant_to_compilers  # which is why the answer is one plain string, and the question holds no sizes
def _traced_choices(kind: str, index: int | None, op: str, layout: str, dtype: torch.dtype, autocast: bool) -> str:
    device = numbered(torch.device(kind) if index is None else torch.device(kind, index))
    return choices.known_choices(op, with_precision(layout, dtype, autocast), dtype, device, able)


@constant_to_compilers
def _tell_unprepared(op: str, dtype: torch.dtype) -> str:
    choices.tell_unprepared(op, dtype, choices.TRACED)
    return op


def numbered(device: torch.device) -> torch.device:
    """A GPU with its number, the current one's where it has none; any other device as it is."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def as_called(call: Call, tokens: torch.dtype, kind: str) -> list[Call]:
    """A call of a model whose tokens are in this dtype, as torch's settings for the device make it come.

    Autocast leaves losses alone. What else a model calls may come from a product or from elsewhere: both are given.
    """
    if not torch.is_autocast_enabled(kind) or call.op in _LOSSES:
        return [call._replace(layout=with_precision(call.layout, call.dtype, False))]
    dtype = torch.get_autocast_dtype(kind)
    if call.op == "bias_gelu":  # of blocks that compute once and for all, for which autocast is off, and of others
        return [call._replace(layout=with_precision(call.layout, one, False), dtype=one) for one in (tokens, dtype)]
    casts = (call.dtype != dtype,) if call.dtype != dtype or tokens == dtype else (True, False)
    return [call._replace(layout=with_precision(call.layout, dtype, cast), dtype=dtype) for cast in casts]


def able(call: Call, device: torch.device) -> list[str]:
    """The kernels that this installation has for a call, and that are only used where they were verified."""
    if device.type == "cuda" and store.too_old(device.index):
        return []
    return [
        name
        for name in VERIFIED.get(device.type, ())
        if name in IMPLEMENTATIONS.get(call.op, ()) and call.dtype in _DTYPES[name] and _missing(name) is None
    ]


def _traced_for_others() -> bool:
    """Whether torch.jit.trace or torch.onnx.export, whose formats know PyTorch's own operators alone, is at work."""
    return torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export())


def has_kernel(op: str, x: Tensor, layout: str = "", columns: int | None = None) -> bool:
    """Whether "auto" runs `op` on a product of x with more than the reference, for callers that have another way.

    Unlike :func:`choose`, a backend in force that has no kernel for it is no error.

    Args:
        op: name of the operation.
        x: what is multiplied.
        layout: as for :func:`choose`.
        columns: of the product.
    """
    in_force = backend_in_force()
    if in_force not in ("auto", REFERENCE):
        return _refusal(in_force, op, x) is None
    if in_force == "auto" and x.device.type in VERIFIED and not _traced_for_others():
        # A product under autocast is in its dtype, and so is what the operation gets.
        dtype = compute_dtype("bottleneck_adapter", x)
        call = Call(op, with_precision(layout, dtype, False), columns or x.shape[-1], 0, dtype)
        few = x.numel() // x.shape[-1] * call.dim < FEW_VALUES.get(op, 0)
        return not (few or transformed()) and _decision(call, x).backend != REFERENCE
    return choose(op, x, "auto") != REFERENCE


def explain(op: str, x: Tensor, *, backend: str = "auto", width: int = 0, layout: str | None = None) -> Choice:
    """Which backend would run an operation, and why not the others; nothing is verified for that.

    Args:
        op: name of a public operation, "ted_adapter" for instance.
        x: its first argument, of the shape, dtype and device in question (a meta tensor stands for no device).
        backend: as it would be passed to the operation.
        width: R of an adapter, by which a kernel is known on a GPU.
        layout: branches and switches, by which it is known as well, such as "temporal"; None is the usual one.

    Raises:
        ValueError: an unknown operation, or a backend asked for by name that cannot run this.
    """
    check_count("width", width, least=0)
    check_float("x", x, rows=False)
    if op not in OPERATIONS:
        raise ValueError(f"unknown operation {op!r}; choose from {', '.join(OPERATIONS)}")
    asked = backend if backend != "auto" else backend_in_force()
    if asked != "auto":
        chosen, reason = choose(op, x, asked), "asked for by name"
    elif x.device.type in VERIFIED:
        chosen, reason = _known_decision(op, x, width, USUAL.get(op, "") if layout is None else layout)
    else:
        chosen = choose(op, x, asked)
        reason = "no other backend runs or pays here" if chosen == REFERENCE else f"it pays on {x.device.type}"
    others = {
        name: _refusal(name, op, x) or _slower(name, op, x) or _not_chosen(chosen, reason, x)
        for name in BACKENDS
        if name != chosen.partition("/")[0]
    }
    return Choice(op, chosen, reason, others)


def _known_decision(op: str, x: Tensor, width: int, layout: str) -> tuple[str, str]:
    if transformed() or op not in IMPLEMENTATIONS:
        return REFERENCE, "no other backend runs here"
    if _few(op, x):
        return REFERENCE, f"launches cost more than a pass over {x.numel()} values"
    dtype = _call_dtype(op, x)
    call = Call(op, with_precision(layout, dtype, dtype != x.dtype), x.shape[-1] if x.dim() else 0, width, dtype)
    found = choices.foreseen(call, numbered(x.device), able)
    return found.backend, found.reason


def _not_chosen(chosen: str, reason: str, x: Tensor) -> str:
    return reason if chosen == REFERENCE else f"{chosen} comes first on {x.device.type}"


def _refusal(name: str, op: str, x: Tensor) -> str | None:
    """Why a backend cannot run `op` on x, or None if it can."""
    missing = _missing(name)
    if name == "reference" or missing is not None:
        return missing
    if op == "masked_word_loss":
        return _MASKED_WORDS
    if name not in IMPLEMENTATIONS[op]:
        return f"it has no kernel for {op}"
    device = device_of(name)
    if x.device.type != device:
        return f"it runs on a {device} device, and the tensors are on {x.device}"
    if device == "cuda" and store.too_old(x.device.index):
        return "it needs a GPU of compute capability 8.0 or newer"
    dtype = compute_dtype(op, x)
    if dtype not in _DTYPES[name]:
        return f"it has no kernels for {dtype}"
    if transformed():
        return "it cannot run inside a torch.func transform or forward-mode differentiation"
    return None


def device_of(backend: str) -> str:
    """The kind of device whose tensors a backend takes; of the reference, which takes any, the CPU."""
    return "cuda" if backend in ("triton", "cuda") and not _INTERPRETED else "cpu"


def _few(op: str, x: Tensor) -> bool:
    """Whether a GPU runs an operation on so little that launches decide."""
    # What is exported must not be bound to batches on one side of the limit.
    return not torch.compiler.is_exporting() and x.numel() < FEW_VALUES.get(op, 0)


def _slower(name: str, op: str, x: Tensor) -> str | None:
    """Why a backend that could run `op` on x of a CPU is not chosen by "auto", or None if it pays."""
    small = name == "native" and op == "bottleneck_adapter" and not torch.compiler.is_exporting()
    if small and x.numel() < _FEW_VALUES:
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


def require_available(name: str) -> None:
    """ValueError unless this installation has the backend, or it is "auto"."""
    _require_known(name)
    missing = _missing(name)
    if missing is not None:
        raise ValueError(f"backend {name!r} is not available here: {missing}")


def _require_known(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        where = f" in ${IN_FORCE}" if os.environ.get(IN_FORCE) == name else ""
        raise ValueError(f"unknown backend {name!r}{where}; choose from {', '.join(('auto', *BACKENDS))}")
