"""What the static rules of the kernels ask about a GPU, and what has been measured on it."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch

from ..tuning import store

_LEAST = 80  # stands for a CPU, where Triton's interpreter runs kernels for proof
_SHARED_MEMORY = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}  # KB a program may use, where it is more than
_SHARED_MEMORY_ELSEWHERE = 99

Config = TypeVar("Config", bound=tuple[Any, ...])


def architecture(device: torch.device) -> int:
    """Compute capability as one number, 90 for 9.0."""
    return _capability(device.index) if device.type == "cuda" else _LEAST


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def shared_memory(architecture: int) -> int:
    """Bytes of shared memory that a program may use."""
    return 1024 * _SHARED_MEMORY.get(architecture, _SHARED_MEMORY_ELSEWHERE)


def config_or_rule(kernel: str, rule: Config, device: torch.device, *arguments: Any) -> Config:
    """The configuration measured on this model of GPU for a kernel and its static rule's arguments, else the rule's."""
    found = store.known_of(device).config(kernel, *arguments)
    return rule if found is None else type(rule)(*found)
