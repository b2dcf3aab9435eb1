"""Registers, shared memory, stack and spills of every CUDA kernel on every architecture, as ptxas reports them.

    python tools/cuda_resources.py [--json]

Builds what is not up to date first. Exit code 1 if a kernel spills registers, 3 without nvcc.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import cuda_build  # noqa: E402
import native_build  # noqa: E402

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Resources(NamedTuple):
    """What a kernel needs on an architecture: registers of a thread, and bytes."""

    kernel: str
    architecture: str
    registers: int
    static_shared: int
    stack: int
    spills: int


def parse(report: str) -> list[Resources]:
    """What `ptxas -v` prints, as one row for a kernel and an architecture.

    Raises:
        ValueError: a kernel whose numbers are not there.
    """
    found = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", report):
        entry = _ENTRY.search(part)
        if entry is None:
            continue
        memory, used = _MEMORY.search(part), _USED.search(part)
        if memory is None or used is None:
            raise ValueError(f"ptxas says nothing of {entry[1]} for {entry[2]}")
        stack, stores, loads = map(int, memory.groups())
        found.append(Resources(entry[1], entry[2], int(used[1]), int(used[2] or 0), stack, stores + loads))
    return found


def readable(names: list[str]) -> dict[str, str]:
    """Names of C++ functions as they are written, without what every kernel has in common."""
    try:
        text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    short = (
        re.sub(r"^void |\(anonymous namespace\)::|_GLOBAL__N__\w+::|\(.*$", "", re.sub(r"\(Path\)|\(int\)", "", line))
        for line in text.splitlines()
    )
    return dict(zip(names, short, strict=True))


def collect() -> list[Resources]:
    """Resources of all kernels of csrc/cuda; raises native_build.CannotBuild."""
    with native_build.taking_turns():
        cuda_build.build_module()
    logs = sorted(cuda_build.folder().glob("*.o.log"))
    rows = [row for log in logs for row in parse(log.read_text(encoding="utf-8"))]
    names = readable([row.kernel for row in rows])
    return [row._replace(kernel=names[row.kernel]) for row in rows]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)
    try:
        rows = collect()
    except cuda_build.NoCompiler as problem:
        print(problem, file=sys.stderr)
        return 3
    except native_build.CannotBuild as problem:
        print(f"{problem.output}{problem}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        width = max(len(row.kernel) for row in rows)
        print(f"{'kernel':{width}}  arch     registers  shared  stack  spills")
        for row in rows:
            numbers = f"{row.registers:9}  {row.static_shared:6}  {row.stack:5}  {row.spills:6}"
            print(f"{row.kernel:{width}}  {row.architecture:7}  {numbers}")
    return 1 if any(row.spills for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
