"""Compiles csrc/cpu/ with ninja: the extension module m2clip.kernels._native, for setup.py.

Needs pybind11, ninja, Python's headers and a C++20 compiler; neither PyTorch nor the network. Honours CXX, CXXFLAGS,
LDFLAGS and MAX_JOBS.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
CPU = SOURCE / "cpu"
BUILD = SOURCE.parent / "build" / "native" / sys.implementation.cache_tag
NOTE = "_native_missing.txt"
KERNELS = {"NATIVE": "CPU", "CUDA": "CUDA"}  # by what M2CLIP_... is called that asks for them
COMPILERS = ("g++", "clang++", "c++")  # looked for in this order where CXX is not set
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
LIBRARIES = ("-ldl", "-pthread")
# isa.cpp is compiled once for each. The first two flags take back what CXXFLAGS may have allowed, such as
# -march=native: which set runs is decided on the machine that runs it.
X86_BASELINE = ("-march=x86-64", "-mno-sse3")
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}


class CannotBuild(Exception):
    """Why there is no extension, and what would help: one line. `output` is what the compiler printed."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that runs."""

    command: tuple[str, ...]
    version: str  # the first line of --version
    x86_64: bool  # what it compiles for
    flags: tuple[str, ...]  # CXXFLAGS
    link_flags: tuple[str, ...]  # LDFLAGS


@dataclass(frozen=True)
class Unit:
    """One object file: a source and the flags it needs beside those of all."""

    source: Path
    name: str
    flags: tuple[str, ...] = ()


def find_compiler() -> Compiler:
    """The compiler that CXX names, or the first of the usual ones.

    Raises:
        CannotBuild: none is there, or it does not run.
    """
    wanted = os.environ.get("CXX")
    command = shlex.split(wanted) if wanted else [name for name in COMPILERS if shutil.which(name)][:1]
    if not command:
        raise CannotBuild("no C++ compiler was found; install one, such as g++ 10 or newer")
    try:
        version = output_of([*command, "--version"]).splitlines()[0]
        machine = output_of([*command, "-dumpmachine"])
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise CannotBuild(
            f"the C++ compiler {shlex.join(command)} does not run; install g++ 10 or newer, or name another in CXX"
        ) from None
    flags, link_flags = (tuple(shlex.split(os.environ.get(name, ""))) for name in ("CXXFLAGS", "LDFLAGS"))
    return Compiler(tuple(command), version, machine.startswith(("x86_64", "amd64")), flags, link_flags)


def kernel_units(compiler: Compiler, module: bool) -> list[Unit]:
    """What is compiled: the kernels, and with `module` what makes an extension module of them."""
    sets = INSTRUCTION_SETS if compiler.x86_64 else {"portable": ()}
    baseline = X86_BASELINE if compiler.x86_64 else ()
    units = [
        Unit(CPU / "isa.cpp", f"isa_{name}", (f"-DM2CLIP_ISA={name}", *baseline, *flags))
        for name, flags in sets.items()
    ]
    for source in sorted(CPU.glob("*.cpp")):
        flags: tuple[str, ...] = ()
        if source.name == "isa.cpp":
            continue
        if source.stem.endswith("module"):
            if not module:
                continue
            flags = _module_flags(compiler)
        elif source.name == "instruction_sets.cpp" and compiler.x86_64:
            flags = ("-DM2CLIP_X86",)
        units.append(Unit(source, source.stem, flags))
    return units


def _module_flags(compiler: Compiler) -> tuple[str, ...]:
    about = {"COMPILER": compiler.version, "FLAGS": shlex.join((*FLAGS, *compiler.flags))}
    return *module_headers(), *(f'-DM2CLIP_{name}="{c_string(text)}"' for name, text in about.items())


def module_headers() -> tuple[str, ...]:
    """Where an extension module's headers are; raises CannotBuild where they are missing."""
    try:
        import pybind11
    except ImportError:
        raise CannotBuild("pybind11 is missing; pip install pybind11 ninja") from None
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").exists():
        raise CannotBuild(f"Python's C headers are not in {headers}; install python3-dev (python3-devel)")
    # As system headers they raise no warnings.
    return "-isystem", headers, "-isystem", pybind11.get_include()


@contextlib.contextmanager
def taking_turns() -> Iterator[None]:
    """Two builds of one checkout wait for each other."""
    if sys.platform != "linux":
        raise CannotBuild("it is made for Linux")
    import fcntl  # not on every system that can do without the extension

    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_module() -> Path:
    """The extension module, compiled where it is not up to date; raises CannotBuild."""
    compiler = find_compiler()
    return run_ninja(BUILD, compiler, kernel_units(compiler, module=True), "_native.so", FLAGS, ("-shared",))


def place(module: Path, wanted: str) -> None:
    """Puts the extension module at a path, or a note beside it that says why it is missing.

    Args:
        module: where it goes. The note is _native_missing.txt in the same folder.
        wanted: M2CLIP_NATIVE; "1" makes its absence an error, "0" leaves it out, "" builds it where that is possible.

    Raises:
        CannotBuild: it is wanted and cannot be built.
    """
    place_extension(module, wanted, "NATIVE", build_module)


def place_extension(
    module: Path,
    wanted: str,
    name: str,
    build: Callable[[], Path],
    quiet: type[CannotBuild] | tuple[()] = (),
) -> None:
    """`place` for any extension: a key of KERNELS, what builds it, and which reason for its absence is not printed."""
    note = module.with_name(f"_{name.lower()}_missing.txt")
    module.parent.mkdir(parents=True, exist_ok=True)
    try:
        if wanted not in ("", "0", "1"):
            raise CannotBuild(f"M2CLIP_{name}={wanted} is neither 0 nor 1")
        if wanted == "0":
            raise CannotBuild(f"M2CLIP_{name}=0 was set; install again without it")
        with taking_turns():
            _replace(module, build())
    except CannotBuild as problem:
        if wanted not in ("", "0"):
            raise
        module.unlink(missing_ok=True)
        note.write_text(f"{problem}\n", encoding="utf-8")
        if not isinstance(problem, quiet):
            reason = f"m2clip: installing without the compiled {KERNELS[name]} kernels: {problem}"
            print(f"{problem.output}{reason}", file=sys.stderr)
        return
    note.unlink(missing_ok=True)


def _replace(module: Path, built: Path) -> None:
    """Leave the same module alone; of another one, processes that have it loaded keep it."""
    if not module.exists() or not filecmp.cmp(built, module, shallow=False):
        fresh = module.with_name(f"{module.name}.new")
        shutil.copy(built, fresh)
        fresh.replace(module)


def run_ninja(
    folder: Path,
    compiler: Compiler,
    units: Sequence[Unit],
    output: str,
    flags: Sequence[str],
    link_flags: Sequence[str] = (),
) -> Path:
    """Compiles the units and links them; what is up to date stays.

    Args:
        folder: where build.ninja and the objects go.
        compiler: whose own flags come after all others, but those of a unit.
        units: object files.
        output: name of the linked file, in the folder.
        flags: for compiling.
        link_flags: for linking.

    Raises:
        CannotBuild: there is no ninja, or a command failed.
    """
    file = _ninja_file(compiler, units, output, flags, link_flags)
    return run_ninja_file(folder, file, output, compiler.version, "it takes C++20, as g++ 10 or clang 14 have it")


def run_ninja_file(folder: Path, file: str, output: str, compiler: str, help: str = "") -> Path:
    """Writes build.ninja, runs ninja and returns the output's path.

    Raises:
        CannotBuild: there is no ninja, or a command failed: the compiler's name, its first error and what would help.
    """
    jobs = os.environ.get("MAX_JOBS", "")
    if jobs and not jobs.isdecimal():
        raise CannotBuild(f"MAX_JOBS={jobs} is not a number")
    command = [_ninja(), "-C", str(folder), *(("-j", jobs) if jobs else ())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(file, encoding="utf-8")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        first = next((line.strip() for line in lines if "error" in line), lines[-1])
        raise CannotBuild(f"{compiler} fails ({first})" + (f"; {help}" if help else ""), done.stdout)
    return folder / output


def _ninja() -> str:
    found = shutil.which("ninja")
    with contextlib.suppress(ImportError):
        import ninja

        # The package's program is not on the PATH of an environment that is used without being activated.
        found = shutil.which("ninja", path=ninja.BIN_DIR) or found
    if not found:
        raise CannotBuild("ninja is missing; pip install pybind11 ninja")
    return found


def _ninja_file(
    compiler: Compiler, units: Sequence[Unit], output: str, flags: Sequence[str], link_flags: Sequence[str]
) -> str:
    objects = [f"{unit.name}.o" for unit in units]
    lines = [
        "rule compile",
        f"  command = {words(compiler.command)} {words(flags)} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {words(compiler.command)} {words(link_flags)} $in -o $out {words(LIBRARIES)} "
        f"{words(compiler.link_flags)}",
    ]
    for unit, name in zip(units, objects, strict=True):
        lines += [f"build {name}: compile {path(unit.source)}"]
        lines += [f"  flags = {words((*compiler.flags, *unit.flags))}"]
    lines += [f"build {output}: link {' '.join(objects)}", ""]
    return "\n".join(lines)


def words(parts: Iterable[str]) -> str:
    """Words as the shell takes them, in a line of a ninja file."""
    return shlex.join(parts).replace("$", "$$")


def path(file: Path) -> str:
    """A path as ninja takes it."""
    return re.sub(r"([$: ])", r"$\1", str(file))


def c_string(text: str) -> str:
    """Text as it stands between quotation marks in C."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def output_of(command: Sequence[str]) -> str:
    """What a command prints; raises CalledProcessError where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
