"""The adapters of a vision transformer of another library in one file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m2clip.drop_in.models import find_places
from m2clip.drop_in.placing import adapt, record_of, shape_of
from m2clip.errors import InputError
from m2clip.files.tensors import DamagedError, load_tensors, save_tensors
from m2clip.sizes import sides

_M = TypeVar("_M", bound=nn.Module)
_ADAPTER = ".adapter."  # in the names of their parameters


def save(model: nn.Module, path: str | Path) -> Path:
    """Write the adapters, and all else that is not frozen, with what :func:`load` needs to put them back.

    Args:
        model: of :func:`m2clip.adapt`.
        path: a file; an earlier one stays readable until the new one is complete.

    Returns:
        The file.

    Raises:
        InputError: a model without adapters, or a file that cannot be written.
    """
    record, path = record_of(model), Path(path)
    if record is None:
        raise InputError("the model has no adapters: m2clip.adapt puts them in")
    kept = {name: own for name, own in model.named_parameters() if own.requires_grad or _ADAPTER in name}
    save_tensors(kept, path, record)
    return path


def load(model: _M, path: str | Path) -> _M:
    """Adapt a model as the saved one was, and take over what had been trained.

    Args:
        model: like the one that was saved, without adapters or with the same.
        path: what :func:`save` wrote.

    Returns:
        The same model. What was trained is not frozen, and it is in the mode (`train`, `eval`) that it was in.

    Raises:
        InputError: a missing, damaged or foreign file, or one of another model, with what differs named.
    """
    path = Path(path)
    tensors, record = _read(path)
    setting = {**record["adapt"], "image_size": sides(record["adapt"]["image_size"])}
    if record_of(model) is None:
        _check_same(path, record["model"], shape_of(model, find_places(model, setting["image_size"])))
        _check_fit(path, model, {name: part for name, part in tensors.items() if _ADAPTER not in name})
        try:
            adapt(model, **setting)
        except (InputError, TypeError) as error:
            raise InputError(f"{path} holds no adapters that can be put in: {error}") from None
    own = record_of(model) or {}
    for part in ("model", "adapt"):
        _check_same(path, record[part], own[part])
    lacking = sorted(name for name, _ in model.named_parameters() if _ADAPTER in name and name not in tensors)
    if lacking:
        raise InputError(f"{path} lacks {lacking[0]!r}")
    _check_fit(path, model, tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).requires_grad_(True).copy_(tensor)
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, record = load_tensors(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except DamagedError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    shape, setting = record.get("model"), record.get("adapt")
    whole = isinstance(shape, dict) and isinstance(setting, dict) and isinstance(setting.get("image_size"), list)
    if "sha256" not in record or not whole:
        raise InputError(f"{path} was not written by m2clip.drop_in.save")
    return tensors, record


def _check_same(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """InputError, naming the fields, unless both are the same."""
    names = [name for name in (*saved, *(given.keys() - saved.keys())) if saved.get(name) != given.get(name)]
    if names:
        words = ", ".join(f"{name} {saved.get(name)!r} (given: {given.get(name)!r})" for name in names)
        raise InputError(f"{path} is of another model: {words}")


def _check_fit(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """InputError unless a model has parameters of these names and shapes."""
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise InputError(f"{path}: the model has no parameter {name!r} of shape {tuple(tensor.shape)}")
