"""What has been measured on a GPU: which backend wins, and with which tiles a kernel runs best.

Nothing is tuned unless somebody asks for it (`m2clip tune`), which writes one JSON a model of GPU. It is read when a
kernel is first launched on such a GPU; without it, or where it cannot be read, static rules hold. No key depends on the
batch size.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import records
from ..torch_private import constant_to_compilers

FOLDER = "M2CLIP_TUNED"  # names another folder for the JSON files
FORMAT = 2
LEAST_CAPABILITY = (8, 0)


class TuningError(OSError):
    """A file of measurements that cannot be used: one line."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class Measurements:
    """What is known of one model of GPU.

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


def folder() -> Path | None:
    """Where the files are: $M2CLIP_TUNED, or m2clip/tuned in the user's cache; None without either."""
    return records.cache_folder(FOLDER, "tuned")


def file_of(device_name: str) -> Path | None:
    """The file of a model of GPU."""
    parent = folder()
    return parent and parent / f"{records.file_name(device_name)}.json"


def save(device_name: str, found: Measurements) -> Path:
    """Add measurements to those of a model of GPU, over the same keys; returns the file. Two at once lose nothing.

    Raises:
        OSError: it cannot be written, and the old file is untouched; or that one is none of ours.
    """
    path = file_of(device_name)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, f"no home folder to keep measurements in; name a folder with ${FOLDER}")
    with records.locked(path.parent):
        known = read(path) if path.exists() else Measurements()
        content = {
            "format": FORMAT,
            "device": device_name,
            "torch": torch.__version__,
            "winners": {**known.winners, **found.winners},
            "configs": {**known.configs, **found.configs},
        }
        records.write(path, content)
    forget()
    return path


def read(path: Path) -> Measurements:
    """The measurements in a file.

    Raises:
        TuningError: it is none of ours, or of another version.
    """
    try:
        content = records.read(path)
        version, winners, configs = content["format"], content["winners"], content["configs"]
        if not (_is_table(winners, _is_backend) and _is_table(configs, _is_config)):
            raise ValueError("its tables are not what was measured")
    except (OSError, ValueError, KeyError) as error:
        raise TuningError(
            path, f"it holds no measurements of m2clip ({error}); delete it and run `m2clip tune`"
        ) from None
    if version != FORMAT:
        raise TuningError(path, "it is of another version of m2clip; delete it and run `m2clip tune` again")
    return Measurements(winners, configs)


def _is_table(table: Any, fits: Callable[[str, Any], bool]) -> bool:
    return isinstance(table, dict) and all(fits(name, value) for name, value in table.items())


def _is_backend(name: str, value: Any) -> bool:
    return name.rpartition(" ")[2].isdecimal() and _is_name(value)


def _is_config(name: str, value: Any) -> bool:
    """Sizes of a kernel's tile, or the name of a plan."""
    if not isinstance(value, list):
        return False
    return all(isinstance(field, int) for field in value) or (len(value) == 1 and _is_name(value[0]))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


@functools.cache
def measured(device_name: str) -> Measurements:
    """What is known of a model of GPU; nothing where it was never measured, or with one line where that is lost."""
    path = file_of(device_name)
    try:
        return read(path) if path is not None and path.exists() else Measurements()
    except OSError as error:
        records.tell(f"{error}; until then static rules hold")
        return Measurements()


@functools.cache
def gpu(index: int) -> tuple[str, tuple[int, int]]:
    """Model and compute capability."""
    return torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)


def known_of(device: torch.device) -> Measurements:
    """What is known of the device that tensors are on; a CPU is asked where kernels run there for proof."""
    return measured(gpu(_number(device.index))[0] if device.type == "cuda" else device.type)


def _number(index: int | None) -> int:
    return torch.cuda.current_device() if index is None else index


# Measured on one GPU of an architecture, for all others of it that were not measured themselves.
OF_ARCHITECTURE: dict[tuple[int, int], Measurements] = {}


def winner(index: int, op: str, dtype: torch.dtype, width: int) -> str:
    """The backend measured to be fastest on a GPU, by its number, or else on its architecture; empty without either."""
    name, capability = gpu(index)
    asked = key(op, dtype, width)
    for known in (measured(name), OF_ARCHITECTURE.get(capability, Measurements())):
        if asked in known.winners:
            return known.winners[asked]
    return ""


def forget() -> None:
    """Read the files again when they are next needed."""
    measured.cache_clear()


@constant_to_compilers
def too_old(index: int | None) -> bool:
    """Whether a GPU is older than the kernels are written for."""
    return gpu(_number(index))[1] < LEAST_CAPABILITY
