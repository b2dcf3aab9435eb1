"""Compiles Triton kernels without a GPU for the architectures that they are meant for."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import machine_code

SHARED_MEMORY = {80: 163, 90: 227, 100: 227, 120: 99}  # KB a block may use
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def compiled(
    kernel: Any,
    architecture: int,
    types: dict[str, Any],
    constants: dict[str, Any],
    aligned: Collection[str] = (),
    **options: Any,
) -> Any:
    """The kernel for an architecture; types are those of its arguments that are no constants, integers by default.

    An argument that is a tuple has a tuple of types, in which None is a tensor that is left out.
    aligned: arguments that are multiples of 16, addresses or numbers; a launch finds out by itself. In a tuple such a
        type ends with ":16".
    options: more constants, and the launch's own.
    """
    launch = {name: options.pop(name) for name in ("num_stages", "num_warps", "maxnreg") if name in options}
    constants = constants | options
    values: dict[tuple[int, ...], Any] = {}
    known: dict[tuple[int, ...], list[list[Any]]] = {}

    def visit(kind: Any, *where: int) -> Any:
        if isinstance(kind, tuple):
            return tuple(visit(part, *where, i) for i, part in enumerate(kind))
        if not isinstance(kind, str):
            values[where] = kind
            return "constexpr"
        name, _, multiple = kind.partition(":")
        if multiple:
            known[where] = [["tt.divisibility", 16]]
        return name

    signature = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            values[i,], signature[name] = constants[name], "constexpr"
        else:
            kind = types.get(name, "i32")
            signature[name] = visit(f"{kind}:16" if name in aligned and isinstance(kind, str) else kind, i)
    source = ASTSource(kernel, signature, constexprs=values, attrs=known)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)


def fits(found: Any, architecture: int) -> bool:
    return found.metadata.shared <= SHARED_MEMORY[architecture] * 1024


def spilled(found: Any, folder: Path) -> int:
    """Bytes of stack a thread uses, which is what does not fit into its registers."""
    return _used(found, folder).stack


def registers(found: Any, folder: Path) -> int:
    """Registers of a thread."""
    return _used(found, folder).registers


def frame_loop(found: Any, folder: Path) -> tuple[machine_code.Instruction, ...]:
    """The instructions of the loop over frames."""
    (code,) = machine_code.codes(_cubin(found, folder)).values()
    return code.frame_loop()


def _used(found: Any, folder: Path) -> machine_code.Resources:
    (used,) = machine_code.resources(_cubin(found, folder)).values()
    return used


def _cubin(found: Any, folder: Path) -> Path:
    (folder / "kernel.cubin").write_bytes(found.asm["cubin"])
    return folder / "kernel.cubin"
