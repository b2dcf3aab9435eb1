"""What this installation was compiled with, or why it lacks a compiled extension."""

from __future__ import annotations

from typing import Any

from .cuda import extension as cuda
from .native import extension as native

INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # those that csrc/ is written for, the fastest first


def build_info() -> dict[str, Any]:
    """The extension m2clip.kernels._native as JSON types.

    Returns:
        {"native": whether it is there, "reason": why not, else None}, and where it is there "compiler", "flags",
        "instruction_sets" (those that this processor runs), "instruction_set" (the one in use), and "threads"
        ("torch" where it runs on torch's OpenMP threads, "own" where it starts threads for each call).
    """
    extension = native.extension
    if extension is None:
        return {"native": False, "reason": native.MISSING}
    return {
        "native": True,
        "reason": None,
        "compiler": extension.compiler,
        "flags": extension.flags,
        "instruction_sets": instruction_sets(),
        "instruction_set": extension.instruction_set(),
        "threads": "torch" if native.SHARES_THREADS else "own",
    }


def cuda_build_info() -> dict[str, Any]:
    """The extension m2clip.kernels._cuda as JSON types.

    Returns:
        {"cuda": whether it is there, "reason": why not, else None}, and where it is there "compiler", "flags",
        "architectures" (what machine code it has, "90a" for instance) and "one_launch" (whether ted_adapter can be one
        launch on Hopper GPUs).
    """
    extension = cuda.extension
    if extension is None:
        return {"cuda": False, "reason": cuda.MISSING}
    return {
        "cuda": True,
        "reason": None,
        "compiler": extension.compiler,
        "flags": extension.flags,
        "architectures": extension.architectures.split(),
        "one_launch": hasattr(extension, "hopper_adapter_forward"),
    }


def instruction_sets() -> list[str]:
    """The instruction sets that are compiled in and that this processor runs; empty without the extension."""
    if native.extension is None:
        return []
    in_use = native.extension.instruction_set()
    usable = [name for name in INSTRUCTION_SETS if native.extension.select_instruction_set(name)]
    native.extension.select_instruction_set(in_use)
    return usable
