"""Building the C++ extension, and doing without: every way ends in one clear line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def native_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The build script of csrc/ with a build folder of its own."""
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "csrc" / "native_build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "native_build", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    for name in ("CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "M2CLIP_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def old_compiler(tmp_path: Path) -> Path:
    """A program that says it is a compiler, and compiles nothing."""
    path = tmp_path / "old compiler"
    answers = "--version) echo 'oldc++ 4.8';; -dumpmachine) echo x86_64-linux-gnu;;"
    path.write_text(f"#!/bin/sh\ncase $1 in {answers} *) echo 'a.cpp:1: error: no C++20'; exit 1;; esac\n")
    path.chmod(0o755)
    return path


def build(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "setup.py",
        "--quiet",
        "build",
        "--build-base",
        str(folder),
        "--build-lib",
        f"{folder}/lib",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "M2CLIP_NATIVE"}
    environment["M2CLIP_CUDA"] = "0"  # tests/kernels/test_cuda.py is about that extension
    return subprocess.run(words, cwd=ROOT, env={**environment, **settings}, capture_output=True, text=True)


def test_without_a_compiler_everything_else_is_installed(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="/nonexistent")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "/nonexistent" in line] == [
        "m2clip: installing without the compiled CPU kernels: the C++ compiler /nonexistent does not run; "
        "install g++ 10 or newer, or name another in CXX"
    ]
    code = (
        # An editable installation would lend its extension to the package.
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in finder.__module__];"
        "import m2clip, m2clip.info as info; found = info.environment();"
        "print(m2clip.__file__, found['build']['native'], found['build']['reason'], found['backends']['native'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    used = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert used.stdout.startswith(f"{tmp_path}/lib/m2clip/__init__.py False the C++ compiler /nonexistent does not run")
    assert "'available': False" in used.stdout


def test_a_compiler_that_must_be_there(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="/nonexistent", M2CLIP_NATIVE="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "m2clip: cannot build the compiled CPU kernels: the C++ compiler /nonexistent does not run; "
        "install g++ 10 or newer, or name another in CXX"
    )
    assert "Traceback" not in done.stderr


def test_left_out_on_request(native_build: ModuleType, tmp_path: Path) -> None:
    module = tmp_path / "package" / "_native.so"
    module.parent.mkdir()
    module.write_text("of an earlier build")
    native_build.place(module, "0")
    assert not module.exists()
    assert "M2CLIP_NATIVE=0" in module.with_name(native_build.NOTE).read_text()
    with pytest.raises(native_build.CannotBuild, match="neither 0 nor 1"):
        native_build.place(module, "yes")


def test_an_old_compiler(
    native_build: ModuleType,
    old_compiler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", f"'{old_compiler}'")
    module = tmp_path / "package" / "_native.so"
    native_build.place(module, "")
    err = capsys.readouterr().err.splitlines()
    assert "oldc++ 4.8 fails (a.cpp:1: error: no C++20)" in err[-1] and "g++ 10" in err[-1]
    assert module.with_name(native_build.NOTE).read_text().startswith("oldc++ 4.8 fails")
    with pytest.raises(native_build.CannotBuild, match="no C\\+\\+20"):
        native_build.place(module, "1")


def test_what_is_missing_is_named(native_build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(native_build.CannotBuild, match="MAX_JOBS=many is not a number"):
        native_build.build_module()
    monkeypatch.delenv("MAX_JOBS")
    monkeypatch.setitem(sys.modules, "pybind11", None)
    with pytest.raises(native_build.CannotBuild, match="pip install pybind11 ninja"):
        native_build.build_module()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native_build.CannotBuild, match=r"no C\+\+ compiler was found; install one"):
        native_build.find_compiler()


def test_place_replaces_only_what_changed(
    native_build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built, module = tmp_path / "built.so", tmp_path / "package" / "_native.so"
    monkeypatch.setattr(native_build, "build_module", lambda: built)
    built.write_text("one")
    native_build.place(module, "0")
    native_build.place(module, "")
    assert module.read_text() == "one" and not module.with_name(native_build.NOTE).exists()
    before = module.stat()
    native_build.place(module, "")
    assert (module.stat().st_ino, module.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    built.write_text("two")
    native_build.place(module, "")
    assert module.read_text() == "two" and [path.name for path in module.parent.iterdir()] == ["_native.so"]


def test_user_flags_leave_the_instruction_sets_alone(native_build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-march=haswell -mavx512f")
    try:
        compiler = native_build.find_compiler()
    except native_build.CannotBuild as problem:
        pytest.skip(str(problem))
    if not compiler.x86_64:
        pytest.skip("only the portable instruction set is compiled here")
    macros = {}
    for unit in native_build.kernel_units(compiler, module=False):
        words = [*compiler.command, *compiler.flags, *unit.flags, "-dM", "-E", "-x", "c++", os.devnull]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        macros[unit.name] = set(done.stdout.split())
    assert "__AVX512F__" in macros["parallel"]
    assert not macros["isa_portable"] & {"__SSE3__", "__AVX__", "__AVX2__", "__FMA__", "__AVX512F__"}
    assert {"__AVX2__", "__FMA__"} <= macros["isa_avx2"] and "__AVX512F__" not in macros["isa_avx2"]
    assert {"__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__"} <= macros["isa_avx512"]


def test_odd_paths_and_flags_reach_the_compiler(native_build: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "a folder: of $ and spaces"
    folder.mkdir()
    source = folder / "one source.cpp"
    source.write_text("const char* text = M2CLIP_TEXT; int main() { return text[1] != '$'; }\n")
    try:
        compiler = native_build.find_compiler()
    except native_build.CannotBuild as problem:
        pytest.skip(str(problem))
    unit = native_build.Unit(source, "one", ('-DM2CLIP_TEXT="\\"$ x"',))
    program = native_build.run_ninja(folder / "build", compiler, [unit], "program", ())
    assert subprocess.run([program]).returncode == 0


def test_source_distribution_has_all_of_csrc(tmp_path: Path) -> None:
    words = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".pyc"} <= names
    kernels = Path("src/m2clip/kernels")
    assert {kernels / "_native.pyi", kernels / "_cuda.pyi"} <= names and Path("tests") not in names
