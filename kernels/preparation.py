"""Verify the kernels of a model before it runs, in one go and with one line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from . import dispatch
from .dispatch import able, backend_in_force, numbered, require_available
from .ops.operator import watched
from .torch_private import transformed
from .verification import choices, store
from .verification.decide import Decision
from .verification.keys import Call


def prepare(
    what: nn.Module | Iterable[Call],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    agree: bool = True,
) -> dict[str, str]:
    """Verify the kernels that a model needs on a GPU, before it runs, is compiled or captured.

    Each kernel is compared with the reference once on a machine, in a process of its own and within the 60 s that
    `M2CLIP_VERIFY_SECONDS` may change. What was found is kept, and a line on standard error says so. On a CPU there is
    nothing to do.

    Args:
        what: a module, whose parts say with a method `kernel_calls` what they will call, or the calls themselves.
        device: where it will run; None is the device of its first parameter, of calls the current GPU.
        dtype: what its tokens will be in; None is autocast's where it is on, else that of the first frozen parameter.
        agree: let all processes of torch.distributed, which must then all call this, run the same kernels.

    Returns:
        The backend of every call, by the call in words.

    Raises:
        ValueError: `M2CLIP_BACKEND` names no backend, or one that cannot run here.
    """
    place = numbered(torch.device(device) if device is not None else _device_of(what))
    if backend_in_force() != "auto":
        require_available(backend_in_force())
        return {}
    calls = list(dict.fromkeys(_calls(what, dtype, place) if isinstance(what, nn.Module) else what))
    calls = [call for call in calls if able(call, place)]  # none on a CPU
    if agree and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _together(calls, place)
    return _words(choices.settle(calls, place, able))


def prepare_once(module: nn.Module, x: torch.Tensor) -> None:
    """`prepare` of a model in its forward pass, unless it has been done for such an input or cannot be done now.

    Args:
        module: the model; it remembers what it was prepared for.
        x: what the pass is given.
    """
    if x.device.type not in dispatch.VERIFIED or watched(x):
        return
    kind = (x.device, torch.get_autocast_dtype(x.device.type), _dtype(module, x.device), module.training)
    if getattr(module, "_prepared_for", None) == kind or dispatch.obstacle(x)[0] or transformed():
        return
    prepare(module, x.device, agree=False)  # other processes need not come here now
    module._prepared_for = kind  # type: ignore[assignment]


def _together(calls: list[Call], device: torch.device) -> dict[str, str]:
    """The first process of each machine verifies, the others take over what it found; all run the same."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        choices.settle(calls, device, able)
    found = {key: verdict for key, verdict in store.held().items() if key.call in set(calls)}
    for others in _gathered(found):
        store.take_over(others)
    own = choices.settle(calls, device, able)  # what is left where a machine has several models of GPU
    choices.agree(_gathered({call: decision.backend for call, decision in own.items()}), device)
    return _words(choices.settle(calls, device, able))


def _gathered(value: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The values of all processes of the group, on each of them."""
    values: list[dict[Any, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _words(decisions: dict[Call, Decision]) -> dict[str, str]:
    return {str(call): decision.backend for call, decision in decisions.items()}


def _calls(module: nn.Module, dtype: torch.dtype | None, device: torch.device) -> list[Call]:
    dtype = dtype or _dtype(module, device)
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "kernel_calls")]
    found = [call for part in parts for call in part.kernel_calls(dtype)]
    return [called for call in found for called in dispatch.as_called(call, _first(module).dtype, device.type)]


def _dtype(module: nn.Module, device: torch.device) -> torch.dtype:
    """What a model's tokens are in."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else _first(module).dtype


def _first(module: nn.Module) -> torch.Tensor:
    """A parameter in the dtype of the tokens: of a tower that is kept in half precision a frozen one."""
    wide = [parameter for parameter in module.parameters() if parameter.is_floating_point() and parameter.dim()]
    return next((parameter for parameter in wide if not parameter.requires_grad), wide[0] if wide else torch.empty(0))


def _device_of(what: nn.Module | Iterable[Call]) -> torch.device:
    if isinstance(what, nn.Module):
        return _first(what).device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
