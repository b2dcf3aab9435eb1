"""What has been measured on a GPU: which backend wins, and with which tiles a kernel runs best.

Nothing is tuned unless somebody asks for it (`m2clip tune`), which writes one JSON a model of GPU. It is read when a
kernel is first launched on such a GPU; without it static rules hold. No key depends on the batch size.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

FOLDER = "M2CLIP_TUNED"  # names another folder for the JSON files
FORMAT = 1
LEAST_CAPABILITY = (8, 0)


class TuningError(ValueError):
    """A file of measurements that cannot be used: one line."""


class Tuned:
    """The measurements of one model of GPU.

    Args:
        winners: backend by operation, dtype and bottleneck width (0 for a loss).
        configs: fields of a kernel's configuration by its name and the arguments of its static rule.
    """

    def __init__(self, winners: dict[str, str] | None = None, configs: dict[str, list[Any]] | None = None) -> None:
        self.winners = winners or {}
        self.configs = configs or {}

    def config(self, kernel: str, *arguments: Any) -> list[Any] | None:
        return self.configs.get(key(kernel, *arguments))


def key(*parts: Any) -> str:
    """One line for a name and the numbers, switches and dtypes after it."""
    return " ".join(str(part).removeprefix("torch.") for part in parts)


def folder() -> Path:
    """Where the files are: $M2CLIP_TUNED, or m2clip/tuned in the user's cache."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2clip" / "tuned"


def file_of(device_name: str) -> Path:
    """The file of a model of GPU."""
    return folder() / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def save(device_name: str, tuned: Tuned) -> Path:
    """Write the measurements of a model of GPU, over those that it had of the same keys; returns the file."""
    path = file_of(device_name)
    known = read(path) if path.exists() else Tuned()
    content = {
        "format": FORMAT,
        "device": device_name,
        "torch": torch.__version__,
        "winners": {**known.winners, **tuned.winners},
        "configs": {**known.configs, **tuned.configs},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)
    forget()
    return path


def read(path: Path) -> Tuned:
    """The measurements in a file.

    Raises:
        TuningError: it is none of ours, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, winners, configs = content["format"], dict(content["winners"]), dict(content["configs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TuningError(
            f"{path} holds no measurements of m2clip ({error}); delete it and run `m2clip tune`"
        ) from None
    if version != FORMAT:
        raise TuningError(f"{path} is of another version of m2clip; delete it and run `m2clip tune` again")
    return Tuned(winners, configs)


@functools.cache
def measured(device_name: str) -> Tuned:
    """What is known of a model of GPU; nothing where it was never measured."""
    path = file_of(device_name)
    return read(path) if path.exists() else Tuned()


@functools.cache
def _gpu(index: int) -> tuple[str, tuple[int, int]]:
    """Model and compute capability."""
    return torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)


def of(device: torch.device) -> Tuned:
    """What is known of the device that tensors are on; a CPU is asked where kernels run there for proof."""
    return measured(_gpu(_number(device.index))[0] if device.type == "cuda" else device.type)


def _number(index: int | None) -> int:
    return torch.cuda.current_device() if index is None else index


# Measured on one GPU of an architecture, for all others of it that were not measured themselves.
OF_ARCHITECTURE: dict[tuple[int, int], Tuned] = {}


def winners(index: int | None, op: str, dtype: torch.dtype) -> str:
    """The backends measured to be fastest on GPU `index` by bottleneck width, as "384=triton 64=cuda"."""
    return _winners(*_gpu(_number(index)), key(op, dtype, ""))


@functools.cache
def _winners(device_name: str, capability: tuple[int, int], asked: str) -> str:
    known = {**OF_ARCHITECTURE.get(capability, Tuned()).winners, **measured(device_name).winners}
    return " ".join(f"{key.removeprefix(asked)}={backend}" for key, backend in known.items() if key.startswith(asked))


def forget() -> None:
    """Read the files again when they are next needed."""
    measured.cache_clear()
    _winners.cache_clear()


def too_old(index: int | None) -> bool:
    """Whether a GPU is older than the kernels are written for."""
    return _gpu(_number(index))[1] < LEAST_CAPABILITY


# A compiler that traces a call takes the answers as constants, which is why they are plain strings and the questions
# hold no sizes: what torch.compiler.assume_constant_result marks, without importing the compiler, which takes a second.
for question in (winners, too_old):
    question._dynamo_marked_constant = True  # type: ignore[union-attr]
