"""Triton kernels compiled ahead of time, which needs no GPU: nothing to collect where Triton is not installed.

Representative is what is compiled for one GPU in its usual dtype; `make test` repeats it with the oldest Triton.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

REPRESENTATIVE = ((90, torch.bfloat16), (80, None))  # kernels that have no dtype of their own stand for themselves

if find_spec("triton") is None:
    collect_ignore_glob = ["*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if (parameters.get("architecture"), parameters.get("dtype")) in REPRESENTATIVE:
            item.add_marker("representative")
