"""Calls and keys of the CPU, which stands for a device whose kernels are verified."""

from __future__ import annotations

import pytest
import torch

from m2clip.kernels.native import extension as native
from m2clip.kernels.verification import choices
from m2clip.kernels.verification.keys import Call, Key

CPU = torch.device("cpu")
needs_extension = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")


def call(op: str = "bias_gelu", layout: str = "gelu", dim: int = 8, width: int = 0) -> Call:
    return Call(op, layout, dim, width, torch.float32)


def key(asked: Call, backend: str = "native") -> Key:
    return choices.key_of(asked, backend, CPU)
