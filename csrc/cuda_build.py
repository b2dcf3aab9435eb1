"""Compiles csrc/cuda/ with nvcc and ninja: the extension module m2clip.kernels._cuda, for setup.py.

It is optional: where there is no nvcc, everything else is installed. Honours NVCC, CUDA_HOME, CXX, M2CLIP_CUDA_ARCHS
("90a;100") and MAX_JOBS. No GPU is needed to build it, and the CUDA runtime is linked in.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import native_build
from native_build import CannotBuild

SOURCE = native_build.SOURCE / "cuda"
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")  # those of them that nvcc knows
HOPPER = "90a"  # the only architecture that the one-launch adapter is for
FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden")


class NoCompiler(CannotBuild):
    """There is no nvcc, which most machines do without: nothing to be loud about."""


@dataclass(frozen=True)
class Nvcc:
    """An nvcc that runs."""

    command: tuple[str, ...]
    version: str  # such as "nvcc 13.0.88"
    architectures: tuple[str, ...]  # to compile for

    def code_flags(self, architectures: tuple[str, ...]) -> tuple[str, ...]:
        """Machine code for each, and PTX, which a driver compiles, for newer GPUs that none of it is for.

        Machine code runs on one generation of GPUs (that for 10.0 on 10.3), PTX on all later ones too. It is there
        for the newest architecture, and for the last one before a generation that is left out, as 11 after 100.
        """
        flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
        covered = {int(name.rstrip("af")) // 10 for name in architectures}
        plain = sorted(filter(str.isdigit, architectures), key=int)
        last = {int(name) // 10: name for name in plain}
        flags += [
            f"-gencode=arch=compute_{name},code=compute_{name}"
            for generation, name in last.items()
            if generation + 1 not in covered or name == plain[-1]
        ]
        return tuple(flags)


def find_nvcc() -> Nvcc:
    """The nvcc that NVCC names, of CUDA_HOME, of the PATH, of a pip package, or where CUDA is usually installed.

    Raises:
        NoCompiler: there is none.
        CannotBuild: it does not run, or M2CLIP_CUDA_ARCHS asks for what it does not know.
    """
    command = _command()
    if host := os.environ.get("CXX"):
        command = (*command, "-ccbin", shlex.split(host)[0])
    try:
        text = native_build.output_of([*command, "--version"])
        known = set(re.findall(r"sm_(\d+)", native_build.output_of([*command, "--list-gpu-code"])))
    except (OSError, subprocess.CalledProcessError):
        raise CannotBuild(f"{shlex.join(command)} does not run; name another nvcc in NVCC") from None
    found = re.search(r"V(\d+[.\d]*)", text)
    version = f"nvcc {found[1] if found else 'of unknown version'}"
    wanted = re.split(r"[;,\s]+", os.environ.get("M2CLIP_CUDA_ARCHS", "").strip(";, "))
    if wanted == [""]:
        return Nvcc(command, version, tuple(name for name in ARCHITECTURES if name.rstrip("a") in known))
    unknown = [name for name in wanted if not re.fullmatch(r"\d+[af]?", name) or name.rstrip("af") not in known]
    if unknown:
        raise CannotBuild(f"M2CLIP_CUDA_ARCHS: {version} does not know {', '.join(unknown)}")
    return Nvcc(command, version, tuple(wanted))


def _command() -> tuple[str, ...]:
    if wanted := os.environ.get("NVCC"):
        return tuple(shlex.split(wanted))
    folders = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    packages = find_spec("nvidia")
    wheels = [Path(place) for place in (packages.submodule_search_locations or [])] if packages else []
    places = [*folders, *os.get_exec_path(), *(wheel / "cu13" / "bin" for wheel in wheels), "/usr/local/cuda/bin"]
    found = next((path for place in places if (path := shutil.which("nvcc", path=str(place)))), None)
    if found is None:
        raise NoCompiler("no nvcc was found; install NVIDIA's CUDA toolkit, or name nvcc in NVCC, and install again")
    return (found,)


def folder() -> Path:
    """Where build.ninja, the objects and what ptxas says of each (NAME.o.log) go."""
    return native_build.BUILD / "cuda"


def build_module() -> Path:
    """The extension module, compiled where it is not up to date; raises CannotBuild."""
    nvcc, compiler = find_nvcc(), native_build.find_compiler()
    hopper = HOPPER in nvcc.architectures
    code = nvcc.code_flags(nvcc.architectures)
    units = []
    for source in sorted(SOURCE.glob("*.cu")):
        special = source.name.startswith("hopper")
        if not special or hopper:
            flags = (f"-gencode=arch=compute_{HOPPER},code=sm_{HOPPER}",) if special else code
            units.append(native_build.Unit(source, source.stem, flags))
    about = {"COMPILER": nvcc.version, "FLAGS": shlex.join(FLAGS), "ARCHITECTURES": " ".join(nvcc.architectures)}
    macros = tuple(f'-DM2CLIP_{name}="{native_build.c_string(text)}"' for name, text in about.items())
    module = (*native_build.module_headers(), *macros, *(["-DM2CLIP_HOPPER"] if hopper else []))
    host = [
        native_build.Unit(SOURCE / "module.cpp", "module", module),
        native_build.Unit(SOURCE / "mixer_plan.cpp", "mixer_plan"),
    ]
    file = _ninja_file(nvcc, units, compiler, host)
    return native_build.run_ninja_file(folder(), file, "_cuda.so", f"{nvcc.version} with {compiler.version}")


def _ninja_file(
    nvcc: Nvcc, units: list[native_build.Unit], compiler: native_build.Compiler, host: list[native_build.Unit]
) -> str:
    words, path = native_build.words, native_build.path
    objects = [f"{unit.name}.o" for unit in (*units, *host)]
    lines = [
        # What ptxas reports of registers and memory is kept; an error is shown.
        "rule cuda",
        f"  command = {words(nvcc.command)} {words(FLAGS)} $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1 "
        "|| { cat $out.log; exit 1; }",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule host",
        f"  command = {words(compiler.command)} {words(native_build.FLAGS)} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {words(nvcc.command)} -shared -cudart static $in -o $out",
    ]
    for rule, group in (("cuda", units), ("host", host)):
        for unit in group:
            own = compiler.flags if rule == "host" else ()
            lines += [f"build {unit.name}.o: {rule} {path(unit.source)}", f"  flags = {words((*own, *unit.flags))}"]
    return "\n".join([*lines, f"build _cuda.so: link {' '.join(objects)}", ""])


def place(module: Path, wanted: str) -> None:
    """Puts the extension module at a path, or a note beside it, _cuda_missing.txt, that says why it is missing.

    Args:
        module: where it goes.
        wanted: M2CLIP_CUDA; "1" makes its absence an error, "0" leaves it out, "" builds it where there is an nvcc.

    Raises:
        CannotBuild: it is wanted and cannot be built.
    """
    native_build.place_extension(module, wanted, "CUDA", build_module, quiet=NoCompiler)
