"""Builds the checks of tests/csrc/ three ways and runs them: as shipped, and under the compiler's sanitizers.

The CUDA kernels run in an emulator, one thread after the other: ThreadSanitizer has nothing to see there.

    python tools/sanitize.py [plain] [address] [thread]

Exit code 1 if a kernel is wrong or a sanitizer reports anything, 3 if the compiler lacks a sanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))
import native_build  # noqa: E402

CHECKS = ROOT / "tests" / "csrc"
# What is not for the CPU has programs of its own, by the first word of their files.
CUDA_CHECKS = ("cuda", "hopper")
# Without -fno-sanitize-recover the program would print what is undefined and end well all the same.
KINDS = {
    "plain": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
COMMON = ("-std=c++20", "-g1", "-Wall", "-Wextra", "-Wno-psabi")


def missing(compiler: native_build.Compiler, kind: str) -> str | None:
    """Why a sanitizer cannot be used here, or None: its library is a package of its own on some systems."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("int main() { return 0; }\n", encoding="utf-8")
        program = str(Path(folder, "empty"))
        command = [*compiler.command, *KINDS[kind], str(source), "-o", program]
        for step in (command, [program]):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                return f"{' '.join(KINDS[kind])} does not work with {compiler.version} here ({lines[-1]})"
    return None


def build(compiler: native_build.Compiler, kind: str) -> list[Path]:
    """The programs of all checks; raises native_build.CannotBuild."""
    flags = KINDS[kind]
    # Sanitizers multiply the time that -O1 takes to compile; the programs then run for seconds only.
    optimised = ("-O3",) if kind == "plain" else ("-Og", "-fno-omit-frame-pointer")
    quickly = () if kind == "plain" else ("-O0",)  # compiling the checks takes longer than running them
    folder = ROOT / "build" / "sanitize" / kind

    def program(name: str, units: list[native_build.Unit]) -> Path:
        return native_build.run_ninja(folder / name, compiler, units, "checks", (*optimised, *COMMON, *flags), flags)

    sources = {path: path.stem.split("_")[0] for path in sorted(CHECKS.glob("*.cpp"))}
    checks = [native_build.Unit(path, path.stem, quickly) for path, of in sources.items() if of not in CUDA_CHECKS]
    programs = [program("cpu", [*native_build.kernel_units(compiler, module=False), *checks])]
    if kind == "thread":
        return programs
    # nvcc takes memory for what it is used as, and knows its own pragmas.
    emulated = ("-fno-strict-aliasing", "-Wno-unknown-pragmas", "-I", str(CHECKS))
    cuda = native_build.SOURCE / "cuda"
    kernels = [path for path in sorted(cuda.glob("*.cu")) if not path.stem.startswith("hopper")]
    units = [native_build.Unit(path, path.stem, (*emulated, "-x", "c++")) for path in kernels]
    units.append(native_build.Unit(cuda / "mixer_plan.cpp", "mixer_plan"))
    for of in CUDA_CHECKS:
        own = [native_build.Unit(path, path.stem, emulated) for path, other in sources.items() if other == of]
        programs.append(program(of, [*(units if of == "cuda" else []), *own]))
    return programs


def run(program: Path) -> subprocess.CompletedProcess[str]:
    """Run the checks; their output goes where ours goes."""
    command = [str(program)]
    # ThreadSanitizer cannot place its memory under the strongest address randomisation of new kernels.
    if program.parent.parent.name == "thread" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]
    settings = {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(command, env={**os.environ, **settings}, text=True)


def main(kinds: list[str]) -> int:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; choose from {', '.join(KINDS)}", file=sys.stderr)
        return 2
    try:
        compiler = native_build.find_compiler()
        for kind in kinds or list(KINDS):
            if reason := missing(compiler, kind):
                print(reason, file=sys.stderr)
                return 3
            start = time.monotonic()
            programs = build(compiler, kind)
            built = time.monotonic()
            for program in programs:
                code = run(program).returncode
                if code:
                    print(f"{kind}: {program.parent.name}: exit code {code}", file=sys.stderr)
                    return 1
            print(f"{kind}: built in {built - start:.0f} s, run in {time.monotonic() - built:.0f} s", flush=True)
    except native_build.CannotBuild as problem:
        print(f"{problem.output}{problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
