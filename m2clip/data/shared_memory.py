"""How decoding processes hand tensors over: in shared memory, or through pipes where there is too little of it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PLACE = "/dev/shm"
_MIB = 1 << 20
_MORE = "give it more room (docker run --shm-size=8g or --ipc=host)"


@dataclass(frozen=True)
class Piped:
    """An item whose tensors are numpy arrays, which go through a pipe.

    Attributes:
        item: the item.
        reason: why it is not in shared memory.
    """

    item: Any
    reason: str


def hand_over(item: Any) -> Any:
    """An item of a decoding process with its tensors in shared memory; `Piped` where they have no room there.

    torch would move them there in a thread of its own, whose errors nobody learns of: the item would never come.
    """
    import torch

    try:
        return _mapped(item, torch.Tensor, lambda tensor: tensor.share_memory_())
    except RuntimeError as error:
        sizes: list[int] = []
        _mapped(item, torch.Tensor, lambda tensor: sizes.append(tensor.nbytes))
        return Piped(
            _mapped(item, torch.Tensor, lambda tensor: tensor.numpy()),
            f"{_PLACE} has no room for {sum(sizes) / _MIB:.1f} MiB ({_state(error)}): decoded videos come through "
            f"pipes, which is slower; {_MORE}, or load less at a time (fewer workers, smaller batches)",
        )


def take_over(piped: Piped) -> Any:
    """The item with tensors again."""
    import numpy
    import torch

    return _mapped(piped.item, numpy.ndarray, torch.from_numpy)


def no_processes(workers: int) -> str | None:
    """Why decoding processes cannot be started, where not even their locks fit into shared memory; else None."""
    try:
        # Two queues' worth for each, and those that all share.
        locks = [multiprocessing.Lock() for _ in range(6 * workers + 16)]
    except OSError as error:
        return f"{_PLACE} has no room for decoding processes ({_state(error)}): videos are decoded in this one; {_MORE}"
    del locks
    return None


def _state(error: Exception) -> str:
    try:
        found = os.statvfs(_PLACE)
    except OSError:
        return " ".join(str(error).split())
    free, whole = (blocks * found.f_frsize / _MIB for blocks in (found.f_bavail, found.f_blocks))
    return f"{free:.1f} of {whole:.1f} MiB are free"


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dictionaries with their values of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(inner, kind, change) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(inner, kind, change) for inner in value)
    return value
