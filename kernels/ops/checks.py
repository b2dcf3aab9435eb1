"""What every public operation refuses before a kernel sees it, each in one line."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

_MOST = 2**31 - 1  # what a kernel's counters hold
_LARGEST = torch.finfo(torch.float32).max


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An integer from `least` on, as a plain one; sizes of a program that is traced pass as what they are.

    An integer is what Python takes for an index (`operator.index`), be it NumPy's or a tensor's, but no truth value.

    Raises:
        TypeError: what is no integer; True and 2.0 are none.
        ValueError: one out of range.
    """
    if torch.jit.is_tracing() and isinstance(value, Tensor):
        return cast(int, value)  # torch.jit.trace makes tensors of sizes
    symbolic = isinstance(value, torch.SymInt)  # a size in a program that is exported or compiled
    if not symbolic and type(value) is not int:
        try:
            if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if not symbolic and value > _MOST:
        raise ValueError(f"{name} must be at most {_MOST}, got {value}")
    return cast(int, value)


def check_grid(grid: Any) -> tuple[int, int]:
    """(H, W), two integers from 0 on; TypeError or ValueError otherwise."""
    if isinstance(grid, str) or not isinstance(grid, Sequence):
        raise TypeError(f"grid must be two integers (H, W), got {grid!r}")
    if len(grid) != 2:
        raise ValueError(f"grid must be two integers (H, W), got {len(grid)} of them: {grid!r}")
    return check_count("the grid's height", grid[0], least=0), check_count("the grid's width", grid[1], least=0)


def check_flag(name: str, value: Any) -> None:
    """TypeError unless it is True or False: a class token counts as 1, and a 2 would be taken for two of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_number(name: str, value: Any) -> float:
    """The number as a float.

    Raises:
        TypeError: what is no number, or a tensor, which would get no gradient.
        ValueError: NaN, infinity and what is infinite in fp32.
    """
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return cast(float, value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not abs(cast(float, value)) <= _LARGEST:  # math.isfinite cannot be traced
        raise ValueError(f"{name} must be finite in fp32, got {value}")
    return float(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """TypeError unless it is one of this class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")


def check_float(name: str, tensor: Any, rows: bool = True) -> None:
    """TypeError unless it is a floating-point tensor; with rows, ValueError for one whose rows have no values."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if rows and (tensor.dim() == 0 or tensor.shape[-1] == 0):
        raise ValueError(f"{name} must have a last dimension of at least 1, got shape {tuple(tensor.shape)}")


def check_width(name: str, weight: Any) -> int:
    """R of a down-projection (R, D), at least 1."""
    check_float(name, weight)
    if weight.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {tuple(weight.shape)}: a bottleneck of width 0")
    return weight.shape[0]


def check_shape(name: str, tensor: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """ValueError unless a parameter has this shape and is on this device; TypeError if it is no tensor of floats."""
    check_float(name, tensor, rows=False)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    check_device(name, tensor, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """ValueError unless the tensor is where the others are."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and the other tensors are on {device}: move one of them")


def check_labels(name: str, labels: Any, rows: int, device: torch.device) -> None:
    """(rows,) int64 on this device; TypeError or ValueError otherwise."""
    dtype = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {dtype}")
    if tuple(labels.shape) != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {tuple(labels.shape)}")
    check_device(name, labels, device)


def check_range(targets: Tensor, classes: int) -> None:
    """ValueError where a target on the CPU is no class; elsewhere looking would wait for the device."""
    if targets.numel() == 0:
        return
    for extreme in targets.aminmax():
        if not 0 <= extreme < classes:
            raise ValueError(f"targets must lie in [0, {classes}), got {int(extreme)}")
