"""What a verification is about: the call of an operation, and the machine and software that it holds for."""

from __future__ import annotations

import functools
import hashlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..tuning import store as tuning

MOST_FRAMES = 64  # of a clip, up to which every plan of ted_adapter can run
MANY_COLUMNS, MANY_COSINES = 1024, 2**20  # from which on a loss takes other tiles, or makes its cosines twice
_PACKAGE = Path(__file__).parent.parent
_DRIVER = Path("/proc/driver/nvidia/version")


class Call(NamedTuple):
    """What a caller wants to run, as far as it decides which kernels are made.

    Attributes:
        op: name of the operation.
        layout: words for the switches and branches; `ted_layout` and its neighbours below give them.
        dim: width of the tokens or features.
        width: R of an adapter, else 0.
        dtype: what is computed in; of a loss, what its features come in.

    D and R are not rounded. Which tile a kernel takes may depend on both in any way, and what has been measured is kept
    by the exact numbers. A model has few of them, so that rounding would save next to no verification. What varies
    between calls of one model (clips, frames, tokens, grid) is no part of it: the worker tries several of these.
    """

    op: str
    layout: str
    dim: int
    width: int
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = f"D={self.dim}" + (f", R={self.width}" if self.width else "")
        return f"{self.op} ({', '.join(filter(None, (self.layout, sizes, short(self.dtype))))})"


class DeviceFacts(NamedTuple):
    """A device, as far as kernels depend on it."""

    kind: str  # "cuda"; "cpu" where kernels run there for proof
    name: str
    capability: tuple[int, int]
    driver: int  # major version


class Software(NamedTuple):
    """What compiles and calls a kernel, and what it is compiled from."""

    torch: str
    triton: str
    sources: str  # digest of the backend's and the operations' files
    tiles: str  # digest of what `m2clip tune` has chosen on this device


class Key(NamedTuple):
    """One verification: what one backend makes of a call here."""

    call: Call
    backend: str  # perhaps with a plan, as "triton/launches"
    device: DeviceFacts
    software: Software

    def __str__(self) -> str:
        return f"{self.call.op} on {self.backend} in {short(self.call.dtype)}"

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        call = {**self.call._asdict(), "dtype": _text(self.call.dtype)}
        device = {**self.device._asdict(), "capability": list(self.device.capability)}
        return {"call": call, "backend": self.backend, "device": device, "software": self.software._asdict()}

    @classmethod
    def of_record(cls, record: Any) -> Key:
        """What `record` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        call, device = record["call"], record["device"]
        return cls(
            Call(**{**call, "dtype": getattr(torch, call["dtype"])}),
            str(record["backend"]),
            DeviceFacts(**{**device, "capability": tuple(device["capability"])}),
            Software(**record["software"]),
        )

    @property
    def name(self) -> str:
        """Of its file."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


def short(dtype: torch.dtype) -> str:
    """As people write it, "bf16" for instance."""
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(_text(dtype), _text(dtype))


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- layouts: words, in an order that is always the same ----

USUAL = {
    "ted_adapter": "both",
    "bottleneck_adapter": "gelu",
    "msta_adapter": "grouped",
    "bias_gelu": "quick_gelu",
    "cosine_cross_entropy": "few",
    "soft_target_kl": "few",
}


def words(*parts: str | tuple[bool, str]) -> str:
    """A layout of words; of those in a pair with False nothing is said."""
    return " ".join([part if isinstance(part, str) else part[1] for part in parts if isinstance(part, str) or part[0]])


def ted_layout(
    temporal: bool,
    difference: bool,
    shared: bool = False,
    class_token: bool = True,
    patches_only: bool = False,
    sequential: bool = False,
    num_frames: int = 1,
) -> str:
    """Of ted_adapter: its branches, and which tokens there are."""
    both = temporal and difference
    branches = ("shared" if shared else "both") if both else "temporal" if temporal else "difference"
    return words(
        branches,
        (not class_token, "no-class-token"),
        (class_token and patches_only, "patches-only"),
        (both and sequential, "sequential"),
        (num_frames > MOST_FRAMES, "long"),
    )


def bottleneck_layout(activation: str, residual: bool = True) -> str:
    """Of bottleneck_adapter."""
    return words(activation, (not residual, "branch"))


def msta_layout(over_frames: bool, after_up: bool, joint: bool) -> str:
    """Of msta_adapter: whether there is a convolution over frames, and where the frames are."""
    return words("after-up" if after_up else "grouped", (joint, "joint")) if over_frames else "text"


def loss_layout(rows: int, columns: int) -> str:
    """Of a loss of rows x columns cosines."""
    return "many" if columns > MANY_COLUMNS or rows * columns > MANY_COSINES else "few"


def with_precision(layout: str, dtype: torch.dtype, autocast: bool) -> str:
    """The layout and what else decides the kernels: whether autocast casts to the dtype, whether TF32 is allowed."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return words(layout, (autocast, "autocast"), (tf32, "tf32")) if autocast or tf32 else layout


# ---- the machine ----


@functools.cache
def device_facts(kind: str, index: int) -> DeviceFacts:
    """Of a GPU by its number, or of the CPU."""
    if kind != "cuda":
        return DeviceFacts(kind, kind, (0, 0), 0)
    name, capability = tuning.gpu(index)
    return DeviceFacts(kind, name, capability, _driver())


def _driver() -> int:
    """Major version of NVIDIA's kernel driver; 0 where it does not say (as under WSL)."""
    try:
        found = re.search(r"\s(\d+)\.\d+", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return int(found[1]) if found else 0


def software(backend: str, device: torch.device) -> Software:
    """Of a backend for a device."""
    configs = sorted(tuning.known_of(device).configs.items())
    tiles = hashlib.sha256(repr(configs).encode()).hexdigest()[:16] if configs else ""
    return Software(torch.__version__, _triton_version(), _sources(backend.partition("/")[0]), tiles)


@functools.cache
def _triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def _sources(backend: str) -> str:
    """Digest of a backend's files, of its compiled extension and of the operations'."""
    digest = hashlib.sha256()
    files = [*(_PACKAGE / backend).rglob("*.py"), *(_PACKAGE / "ops").rglob("*.py"), _PACKAGE / "operands.py"]
    for path in sorted([*files, *_PACKAGE.glob(f"_{backend}*.so")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
