"""Compiles Triton kernels without a GPU for the architectures that they are meant for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = {80: 163, 90: 227, 100: 227, 120: 99}  # KB a block may use
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def compiled(
    kernel: Any,
    architecture: int,
    types: dict[str, str],
    constants: dict[str, Any],
    aligned: Collection[str] = (),
    **options: int,
) -> Any:
    """The kernel for an architecture; types are those of its arguments that are no constants, integers by default.

    aligned: arguments that are multiples of 16, addresses or numbers; a launch finds out by itself.
    """
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "i32") for name in names} | dict.fromkeys(constants, "constexpr")
    known = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned if name in names}
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs=constants, attrs=known)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def fits(found: Any, architecture: int) -> bool:
    return found.metadata.shared <= SHARED_MEMORY[architecture] * 1024


def spilled(found: Any, folder: Path) -> int:
    """Bytes of stack a thread uses, which is what does not fit into its registers."""
    (folder / "kernel.cubin").write_bytes(found.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True)
    return int(re.search(r"STACK:(\d+)", report.stdout)[1])
