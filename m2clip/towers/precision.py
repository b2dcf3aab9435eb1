"""The number types that towers, heads and losses compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2clip.errors import InputError
from m2clip.kernels import prepare

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Floats as heads and losses compute with them: half precision as fp32, fp64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def place(model: Any, device: torch.device, precision: str) -> Any:
    """The model on its device for evaluation; on a GPU it is kept in half precision if asked, its kernels verified."""
    model = model.to(device).eval()
    if precision != "fp32" and device.type == "cuda":
        model.set_precision(precision)
    prepare_kernels(model)
    return model


def prepare_kernels(model: Any) -> dict[str, str]:
    """Verify on a GPU the kernels that the model needs; the backend of each call (:func:`m2clip.kernels.prepare`).

    Raises:
        InputError: $M2CLIP_BACKEND names no backend, or one that cannot run here.
    """
    try:
        return prepare(model)
    except ValueError as error:
        raise InputError(str(error)) from None
