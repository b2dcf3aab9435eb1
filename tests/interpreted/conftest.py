"""Triton kernels on the CPU, by Triton's interpreter: collected only where TRITON_INTERPRET=1 is set (`make test`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session", autouse=True)
def language_is_patched_once_per_launch() -> Iterator[None]:
    """The interpreter patches triton.language at each call of one kernel function by another, as its launch has done.

    That takes a quarter of the time. The functions of one module see the same triton.language: once per launch is
    enough for them.
    """
    from triton.runtime import interpreter

    patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set[int]()

    def patch_once(function: Callable[..., Any]) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return None  # which the caller does not use
        patched.add(module)
        return patch(function)

    def launch_anew(*args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(*args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        yield


@pytest.fixture(scope="session", autouse=True)
def tensor_cores_drop_the_low_bits_of_tf32() -> Iterator[None]:
    """The interpreter multiplies all bits of fp32; of tf32 tensor cores read the upper 19 and ignore the others."""
    import numpy as np
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def read(operand: Any) -> Any:
        bits = operand.data.view(np.uint32) & np.uint32(0xFFFFE000)
        return interpreter.TensorHandle(bits.view(np.float32), operand.dtype)

    def dot_of_tf32(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if precision.name == "TF32" and a.dtype.is_fp32():
            a, b = read(a), read(b)
        return dot(builder, a, b, d, precision, imprecise)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_of_tf32)
        yield
