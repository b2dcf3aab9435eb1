"""The CUDA backend where there is no GPU: what it says, how it is built, and its call into the extension."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import m2clip
from m2clip.cli import main
from m2clip.kernels import build_info, cuda, dispatch

ROOT = Path(__file__).parent.parent
needs_cuda = pytest.mark.skipif(cuda.extension is None, reason="no CUDA extension here")


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The build script of csrc/cuda with a build folder of its own."""
    for name in ("native_build", "cuda_build"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "csrc" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    monkeypatch.setattr(sys.modules["native_build"], "BUILD", tmp_path / "build")
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH", "CXX", "MAX_JOBS", "M2CLIP_CUDA", "M2CLIP_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says it is nvcc, and compiles nothing."""
    path = tmp_path / "my nvcc"
    codes = "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_90a\\nsm_120\\n';;"
    version = "--version) echo 'Cuda compilation tools, release 12.8, V12.8.61';;"
    path.write_text(f"#!/bin/sh\ncase $1 in {version} {codes} *) echo 'a.cu(1): error: no'; exit 1;; esac\n")
    path.chmod(0o755)
    monkeypatch.setenv("NVCC", f"'{path}'")
    return path


def test_without_nvcc_it_is_left_out_quietly(
    cuda_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_build.shutil, "which", lambda *args, **options: None)
    module = tmp_path / "package" / "_cuda.so"
    cuda_build.place(module, "")
    note = (tmp_path / "package" / "_cuda_missing.txt").read_text()
    assert "no nvcc was found" in note and not module.exists()
    assert capsys.readouterr() == ("", "")
    with pytest.raises(cuda_build.CannotBuild, match="no nvcc was found"):
        cuda_build.place(module, "1")
    cuda_build.place(module, "0")
    assert "M2CLIP_CUDA=0" in (tmp_path / "package" / "_cuda_missing.txt").read_text()


def test_architectures_are_those_that_nvcc_knows(
    cuda_build: ModuleType, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = cuda_build.find_nvcc()
    assert (nvcc.command, nvcc.version) == ((str(fake_nvcc),), "nvcc 12.8.61")
    assert nvcc.architectures == ("80", "90a", "120")
    flags = nvcc.code_flags(nvcc.architectures)
    assert (
        "-gencode=arch=compute_90a,code=sm_90a" in flags and flags[-1] == "-gencode=arch=compute_120,code=compute_120"
    )
    monkeypatch.setenv("M2CLIP_CUDA_ARCHS", "90a; 80")
    assert cuda_build.find_nvcc().architectures == ("90a", "80")
    assert cuda_build.find_nvcc().code_flags(("90a",)) == ("-gencode=arch=compute_90a,code=sm_90a",)
    monkeypatch.setenv("M2CLIP_CUDA_ARCHS", "90a;100;x")
    with pytest.raises(cuda_build.CannotBuild, match="nvcc 12.8.61 does not know 100, x"):
        cuda_build.find_nvcc()


def test_a_build_that_fails_leaves_a_note(
    cuda_build: ModuleType, fake_nvcc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "package" / "_cuda.so"
    try:
        cuda_build.place(module, "1")
    except cuda_build.CannotBuild as problem:
        if "error: no" not in str(problem):
            pytest.skip(str(problem))
    cuda_build.place(module, "")
    assert "nvcc 12.8.61 with" in capsys.readouterr().err.splitlines()[-1]
    assert "(a.cu(1): error: no)" in (tmp_path / "package" / "_cuda_missing.txt").read_text()


def test_an_nvcc_that_does_not_run(cuda_build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "/nonexistent/nvcc")
    with pytest.raises(cuda_build.CannotBuild, match="/nonexistent/nvcc does not run"):
        cuda_build.find_nvcc()


def test_cuda_home_comes_before_the_path(
    cuda_build: ModuleType, fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "toolkit" / "bin" / "nvcc"
    own.parent.mkdir(parents=True)
    fake_nvcc.rename(own)
    monkeypatch.delenv("NVCC")
    monkeypatch.setenv("CUDA_HOME", str(own.parent.parent))
    assert cuda_build.find_nvcc().command == (str(own),)


def test_why_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda, "extension", None)
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())
    assert cuda.why_missing("no libstdc++") == "it was built but does not load: no libstdc++"
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    monkeypatch.setattr(m2clip, "__file__", str(tmp_path / "__init__.py"))
    assert "never built" in cuda.why_missing("")
    (tmp_path / "_cuda_missing.txt").write_text("no nvcc was found\n")
    monkeypatch.setattr(cuda, "MISSING", cuda.why_missing(""))
    assert build_info.cuda_build_info() == {"cuda": False, "reason": "no nvcc was found"}
    state = dispatch.backend_states()["cuda"]
    assert not state.available and state.reason.endswith("m2clip._cuda is missing: no nvcc was found")
    with pytest.raises(ValueError, match="no nvcc was found"):
        m2clip.kernels.explain("ted_adapter", torch.zeros(2, 5, 8), backend="cuda")
    assert main(["info"]) == 0
    assert "none: no nvcc was found" in capsys.readouterr().out


@needs_cuda
def test_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)["cuda_build"]
    assert built["cuda"] and built["compiler"].startswith("nvcc ") and "-std=c++20" in built["flags"]
    assert built["architectures"] and built["one_launch"] == ("90a" in built["architectures"])
    if not torch.cuda.is_available():
        assert dispatch.backend_states()["cuda"].reason == "CUDA kernels need an NVIDIA GPU, and PyTorch sees none"


@needs_cuda
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_launch_that_fails_is_an_error() -> None:
    shape = cuda.extension.MixerShape(1, 1, 4, 2, 2, 8, False, True, False, False)
    with pytest.raises(RuntimeError, match="CUDA: mixer_forward: .*(driver|device)"):
        cuda.extension.mixer_forward("float32", shape, cuda.extension.MixerWeights(0, 0, 0, 0, 0), 0, 0, 0, 0)
    with pytest.raises(ValueError, match="no CUDA kernel for float64"):
        cuda.extension.mixer_workspace("float64", shape, 0)


@needs_cuda
def test_workspace_stays_small() -> None:
    # The workspace at B=32, T=8, ViT-B/16, R=384: a few MB beside 77 MB of h.
    shape = cuda.extension.MixerShape(32, 8, 197, 14, 14, 384, True, True, True, False)
    assert 4 * cuda.extension.mixer_workspace("bfloat16", shape, 0) < 5e6
    many = cuda.extension.MixerShape(10_000, 8, 197, 14, 14, 384, True, True, True, False)
    assert 4 * cuda.extension.mixer_workspace("bfloat16", many, 0) < 20e6


def _tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "cuda_resources.py", *arguments], capture_output=True, text=True
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    return done


@needs_cuda
def test_no_kernel_spills_registers(capsys: pytest.CaptureFixture[str]) -> None:
    done = _tool("--json")
    assert done.stdout, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{_tool().stdout}")
    assert [row for row in rows if row["spills"]] == []
    compiled = set(build_info.cuda_build_info()["architectures"])
    mixers = {row["architecture"] for row in rows if "mixer_forward" in row["kernel"]}
    assert mixers == {f"sm_{name}" for name in compiled}
    # Two blocks on a multiprocessor, for which the launch bounds ask.
    assert all(
        row["registers"] <= 128 for row in rows if row["kernel"].startswith("mixer_forward") and "0>" in row["kernel"]
    )


def test_the_report_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import cuda_resources

    report = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90a'
ptxas info    : Function properties for _Z1kv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 64 bytes smem, 400 bytes cmem[0]
"""
    assert cuda_resources.parse(report) == [cuda_resources.Resources("_Z1kv", "sm_90a", 128, 64, 8, 16)]
    with pytest.raises(ValueError, match="ptxas says nothing of _Z1kv"):
        cuda_resources.parse(report.splitlines()[0])
