"""Registers, memory, loads and instructions of one representative of every kernel, from its machine code.

    python tools/kernel_resources.py           # Triton's kernels, compiled here for sm_80 and sm_90; needs no GPU
    python tools/kernel_resources.py --cuda    # those of m2clip.kernels._cuda as it was built, likewise

Representatives compute in bf16, for ViT-B/16 with 8 frames. A program is a block of threads; how many of Triton's run
on a multiprocessor at once follows from registers and shared memory, which CUDA's are given at the launch. The stack is
what did not fit into the registers. Of loads from global memory those of 16 bytes are counted, and in the loop over
frames those of a single value. The loop's instructions are divided by the values that a thread computes in a turn: of
u, or backward of dh and, in the same turn, of u. Writes machine_code_*.json; --markdown prints a table for pages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from gpu_compile import BACKEND, Compilation, recording
from machine_code import Code, Instruction, codes, stored, widths

from benchmarks.measure import parser, write_results
from benchmarks.workloads import DEVICE, Workload, bottleneck, gelu, loss, msta, planned, ted
from m2clip.commands.shared.output import console, table
from m2clip.kernels import TimeLayout
from m2clip.kernels.cuda import extension as cuda
from m2clip.kernels.operands import Geometry
from m2clip.kernels.triton.mixer import Mixer

DTYPE = torch.bfloat16
TARGETS = {80: "sm_80", 90: "sm_90"}
# Tensors that the loop over frames writes, of kernels that have one.
WRITTEN = {
    "temporal_forward_kernel": 1,
    "difference_forward_kernel": 1,
    "temporal_backward_kernel": 2,
    "difference_backward_kernel": 2,
    "time_kernel": 1,
    "time_backward_kernel": 1,
    "mixer_forward_kernel": 1,
    "mixer_backward_kernel": 2,
}
# Of CUDA's templates: bf16 or no dtype; in which columns the branches are, or that rows may begin anywhere.
BFLOATS, PATHS = ("", "__nv_bfloat16", "Bf16"), ("separate", "shared", "any rows")
UNITS = {"add_residual_kernel": "values", "adapter_kernel": "columns"}
HEADER = ("kernel", "", "for", "registers", "stack", "shared", "programs", "16-byte", "per value", "single")


class Case(NamedTuple):
    """Calls that launch kernels: in what they are special, what runs, and which kernels count; all new ones if none."""

    what: str
    run: Callable[[], object]
    kernels: tuple[str, ...] = ()


def cases() -> Iterator[Case]:
    """What launches every Triton kernel."""
    yield Case("R=384", _passes(ted(1, 8, (14, 14), 768, 384), "launches"))
    patches = ("difference_forward_kernel", "difference_backward_kernel")
    yield Case("R=384, shared", _passes(ted(1, 8, (14, 14), 768, 384, "shared"), "launches"), patches)
    yield Case("R=64", _passes(ted(1, 8, (14, 14), 768, 64), "narrow"), ("one_pass_narrow_kernel",))
    yield Case("R=384", _passes(ted(1, 8, (14, 14), 768, 384), "wide"), ("one_pass_wide_kernel",))
    yield Case("R=384, when tuned", _tables)
    yield Case("R=64", _passes(bottleneck((8 * 197, 768), 64)))
    yield Case("R=384", _passes(bottleneck((8 * 197, 768), 384)))
    yield Case("d=256", _passes(msta((8, 197, 768), 256, TimeLayout(8))))
    after_up = msta((8, 197, 768), 256, TimeLayout(8), after_up=True)
    yield Case("d=256, after up", _passes(after_up), ("time_kernel", "time_backward_kernel"))
    yield Case("64x400, D=512", _passes(loss("cosine_cross_entropy", 64, 400, 512)))
    yield Case("64x64, D=512", _passes(loss("soft_target_kl", 64, 64, 512)))
    yield Case("D=3072", _passes(gelu((8 * 197, 3072))))


def _passes(work: Workload, plan: str = "") -> Callable[[], object]:
    """Both passes of a call, by a plan if one is named."""

    def run() -> object:
        leaves = work.placed(DTYPE)
        if not plan:
            return work.results(leaves, BACKEND)
        with planned(BACKEND, plan):
            return work.results(leaves, BACKEND)

    return run


def _tables() -> object:
    temporal = [torch.randn(384, 1, 3), torch.randn(384)]
    difference = [torch.randn(384, 1, 3, 3), torch.randn(384), torch.randn(384)]
    weights = ([tensor.to(DTYPE) for tensor in part] for part in (temporal, difference))
    return Mixer(*weights, False, Geometry(8, (14, 14), True, False)).tables


def representatives(architecture: int) -> list[tuple[str, Compilation]]:
    """The first launch of each kernel, and in which case it is."""
    chosen: dict[tuple[str, str], tuple[str, Compilation]] = {}
    with recording(architecture) as recorder:
        for case in cases():
            before = {name for name, _ in chosen}
            recorder.found.clear()
            case.run()
            for found in recorder.found.values():
                if found.name in case.kernels or (not case.kernels and found.name not in before):
                    chosen.setdefault((found.name, case.what), (case.what, found))
    return list(chosen.values())


def triton_rows(architecture: int, folder: Path) -> list[dict[str, Any]]:
    """What the Triton at hand makes of the representatives for an architecture; the folder is for its files."""
    rows, chosen = [], representatives(architecture)
    for what, found in chosen:
        kernel = found.compiled()
        (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        (code,) = codes(folder / "kernel.cubin").values()
        warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
        at_once = programs(architecture, code.resources.registers, warps, shared)
        row = {"kernel": found.name, "case": what, "architecture": TARGETS[architecture], "warps": warps}
        rows.append(row | measured(found.name, code, shared, at_once))
    for _, found in chosen:
        found.kernel.device_caches.clear()  # they hold the architecture
    return rows


def cuda_rows(architecture: str) -> list[dict[str, Any]]:
    """What is in the extension for an architecture: kernels of bf16, and those of no dtype."""
    found = codes(Path(cuda.extension.__file__), f"sm_{architecture}")
    rows = []
    for name, code in zip(readable(list(found)), found.values(), strict=True):
        kernel, _, given = name.rstrip(">").partition("<")
        dtype, _, number = given.partition(", ")
        if dtype in BFLOATS:
            case = PATHS[int(number)] if kernel in WRITTEN else f"{UNITS[kernel]}: {number}" if number else ""
            row = {"kernel": kernel, "case": case, "architecture": f"sm_{architecture}"}
            rows.append(row | measured(kernel, code))
    return sorted(rows, key=lambda row: (row["kernel"], row["case"]))


def measured(name: str, code: Code, shared: int | None = None, at_once: int | None = None) -> dict[str, Any]:
    """What a row says of a kernel's machine code, and of its launch where that is known."""
    loads, loop = code.loads(), code.frame_loop() if name in WRITTEN else ()
    return {
        "registers": code.resources.registers,
        "stack": code.resources.stack,
        "shared": shared,
        "programs": at_once,
        "instructions": len(code.instructions),
        "loads": {str(width): number for width, number in sorted(loads.items())},
        "wide_share": loads[16] / loads.total() if loads else None,
        "loop": looped(loop, WRITTEN[name]) if loop else None,
    }


def looped(loop: tuple[Instruction, ...], tensors: int) -> dict[str, Any]:
    """What a turn of a loop over frames costs, which writes so many tensors."""
    values = stored(loop) // (DTYPE.itemsize * tensors)
    single = widths(loop, ("LDG",))[DTYPE.itemsize]
    return {"instructions": len(loop), "values": values, "per_value": len(loop) / values, "single_loads": single}


def programs(architecture: int, registers: int, warps: int, shared: int) -> int:
    """How many blocks of threads a multiprocessor of capability 8.0 or 9.0 runs at once.

    Registers are given to a warp by 256, each of four parts of a multiprocessor has 16,384 of them, and a block takes
    1 KB of shared memory besides its own (CUDA's programming guide, tables of compute capabilities).
    """
    of_a_warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * (16384 // of_a_warp) // warps
    by_memory = {80: 164, 90: 228}[architecture] * 1024 // (-(-shared // 128) * 128 + 1024)
    return min(by_registers, by_memory, 64 // warps, 32)


def readable(names: list[str]) -> list[str]:
    """Names of C++ functions as they are written, without what every kernel has in common."""
    if shutil.which("c++filt") is None:
        return names
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    common = r"^void |\(anonymous namespace\)::|_GLOBAL__N__\w+::|hopper::|\(.*$"
    return [re.sub(common, "", re.sub(r"\(Path\)|\(int\)", "", line)) for line in text.splitlines()]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    loop, wide = row["loop"], row["wide_share"]
    return (
        row["kernel"].removesuffix("_kernel"),
        row["case"],
        row["architecture"],
        str(row["registers"]),
        str(row["stack"]),
        "" if row["shared"] is None else f"{row['shared'] / 1024:.0f} KB",
        "" if row["programs"] is None else str(row["programs"]),
        "" if wide is None else f"{100 * wide:.0f} %",
        "" if loop is None else f"{loop['per_value']:.1f}",
        "" if loop is None else str(loop["single_loads"]),
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each kernel and case, in which what differs between architectures stands side by side."""
    grouped: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for row in rows:
        kernel, case, _, *numbers = cells(row)
        grouped.setdefault((kernel, case), []).append(tuple(numbers))
    lines = [(*HEADER[:2], *HEADER[3:]), ("---", "---", *["---:"] * (len(HEADER) - 3))]
    for names, found in grouped.items():
        lines.append((*names, *(" / ".join(dict.fromkeys(column)) for column in zip(*found, strict=True))))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    options = parser(__doc__, writes="the JSON")
    options.add_argument("--cuda", action="store_true", help="the kernels of the CUDA extension, as it was built")
    options.add_argument("--markdown", action="store_true", help="print the table as a page has it")
    args = options.parse_args()
    if args.cuda and cuda.extension is None:
        sys.exit(f"the compiled extension m2clip.kernels._cuda is missing: {cuda.MISSING}")
    if args.cuda:
        name, compiler = "machine_code_cuda", cuda.extension.compiler
        built = [each for each in cuda.extension.architectures.split() if each.rstrip("a") in map(str, TARGETS)]
        rows = [row for architecture in built for row in cuda_rows(architecture)]
    else:
        version = ".".join(triton.__version__.split(".")[:2])
        name, compiler = f"machine_code_triton_{version}", f"Triton {triton.__version__}"
        with tempfile.TemporaryDirectory() as folder:
            rows = [row for architecture in TARGETS for row in triton_rows(architecture, Path(folder))]
    if args.markdown:
        print(markdown(rows))
    else:
        console().print(table(HEADER, [cells(row) for row in rows], numbers=7))
    print(write_results(name, DEVICE, {"compiler": compiler, "rows": rows}, args.out))


if __name__ == "__main__":
    main()
