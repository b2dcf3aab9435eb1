"""What the machine code of GPU kernels tells without a GPU: registers, memory, loads, and what its loops cost.

Reads the output of NVIDIA's cuobjdump, which comes with Triton.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import triton

_FUNCTION = re.compile(r"^\s*Function\s*:\s*(\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_USED = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_LOADS, _STORES = ("LDG", "LDGSTS"), ("STG",)  # the second of the loads is cp.async


class Instruction(NamedTuple):
    """One instruction: where it is, its name with suffixes, and where a jump goes."""

    address: int
    name: str
    target: int | None

    @property
    def operation(self) -> str:
        return self.name.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a load or a store of a thread moves."""
        return next((_WIDTHS[suffix] for suffix in self.name.split(".")[1:] if suffix in _WIDTHS), 4)


class Resources(NamedTuple):
    """What a kernel takes: registers and bytes of stack of a thread, bytes of static shared memory of a block."""

    registers: int
    stack: int
    shared: int


class Code(NamedTuple):
    """One kernel for one architecture."""

    resources: Resources
    instructions: tuple[Instruction, ...]

    def loads(self) -> Counter[int]:
        """Loads from global memory by their bytes."""
        return widths(self.instructions, _LOADS)

    def frame_loop(self) -> tuple[Instruction, ...]:
        """The longest of the loops that write to global memory and have no such loop inside; empty without one."""
        jumps = ((one.target, one.address) for one in self.instructions if one.operation == "BRA")
        spans = [(first, last) for first, last in jumps if first is not None and first < last]
        loops = {(first, last): self._between(first, last) for first, last in spans}
        writing = {span: body for span, body in loops.items() if stored(body)}
        return max((body for span, body in writing.items() if not _holds_any(span, writing)), key=len, default=())

    def _between(self, first: int, last: int) -> tuple[Instruction, ...]:
        return tuple(one for one in self.instructions if first <= one.address <= last)


def _holds_any(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(span[0] <= first and last <= span[1] and (first, last) != span for first, last in others)


def cuobjdump() -> Path:
    """The program in the Triton at hand."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def widths(instructions: tuple[Instruction, ...], operations: tuple[str, ...]) -> Counter[int]:
    """How many of these operations move how many bytes."""
    return Counter(one.width for one in instructions if one.operation in operations)


def stored(loop: tuple[Instruction, ...]) -> int:
    """Bytes that a thread writes to global memory in one turn of a loop."""
    return sum(width * number for width, number in widths(loop, _STORES).items())


def resources(file: Path, architecture: str = "") -> dict[str, Resources]:
    """What the kernels of a cubin or of a library take, by their names as the compiler writes them.

    Args:
        file: what it reads.
        architecture: of a library with code for several, such as "sm_80".
    """
    text = _told("--dump-resource-usage", file, architecture)
    return {name: Resources(*map(int, numbers)) for name, *numbers in _USED.findall(text)}


def codes(file: Path, architecture: str = "") -> dict[str, Code]:
    """The same kernels with their instructions.

    Raises:
        ValueError: a kernel whose resources or instructions are not told.
    """
    listed = parse(_told("--dump-sass", file, architecture))
    used = resources(file, architecture)
    if missing := sorted(listed.keys() ^ used.keys()):
        raise ValueError(f"cuobjdump does not tell all of {missing[0]}")
    return {name: Code(used[name], instructions) for name, instructions in listed.items()}


def parse(sass: str) -> dict[str, tuple[Instruction, ...]]:
    """The kernels' instructions in what cuobjdump prints with --dump-sass."""
    _, *parts = _FUNCTION.split(sass)
    return {name: tuple(_instructions(text)) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _told(what: str, file: Path, architecture: str) -> str:
    chosen = ["-arch", architecture] if architecture else []
    return subprocess.run([cuobjdump(), what, *chosen, file], capture_output=True, text=True, check=True).stdout


def _instructions(text: str) -> Iterator[Instruction]:
    for address, name, operands in _INSTRUCTION.findall(text):
        target = _TARGET.search(operands) if name.startswith("BRA") else None
        if name != "NOP":
            yield Instruction(int(address, 16), name, int(target[1], 16) if target else None)
