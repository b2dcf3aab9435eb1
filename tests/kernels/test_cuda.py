"""The CUDA backend where there is no GPU: what it says, how it is built, and its call into the extension."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import m2clip
from m2clip.cli import main
from m2clip.kernels import build_info, compiled, dispatch
from m2clip.kernels.cuda import extension as cuda

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setenv("M2CLIP_CUDA_ARCHS", "90a; 80")
    assert cuda_build.find_nvcc().architectures == ("90a", "80")
    monkeypatch.setenv("M2CLIP_CUDA_ARCHS", "90a;100;x")
    with pytest.raises(cuda_build.CannotBuild, match="nvcc 12.8.61 does not know 100, x"):
        cuda_build.find_nvcc()


@pytest.mark.parametrize(
    ("architectures", "ptx"),
    [
        (("80", "86", "89", "90a", "100", "120"), ["100", "120"]),  # the former for 11.0
        (("80", "120"), ["80", "120"]),
        (("90a", "80"), ["80"]),
        (("90a",), []),
    ],
)
def test_newer_gpus_find_ptx(
    architectures: tuple[str, ...], ptx: list[str], cuda_build: ModuleType, fake_nvcc: Path
) -> None:
    flags = cuda_build.find_nvcc().code_flags(architectures)
    machine_code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    assert list(flags) == machine_code + [f"-gencode=arch=compute_{name},code=compute_{name}" for name in ptx]


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
    monkeypatch.setattr(compiled, "find_spec", lambda name, package: object())
    assert compiled.why_missing("_cuda", "no libstdc++") == "it was built but does not load: no libstdc++"
    monkeypatch.setattr(compiled, "find_spec", lambda name, package: None)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert "never built" in compiled.why_missing("_cuda", "")
    (tmp_path / "_cuda_missing.txt").write_text("no nvcc was found\n")
    monkeypatch.setattr(cuda, "MISSING", compiled.why_missing("_cuda", ""))
    assert build_info.cuda_build_info() == {"cuda": False, "reason": "no nvcc was found"}
    state = dispatch.backend_states()["cuda"]
    assert not state.available and state.reason.endswith("m2clip.kernels._cuda is missing: no nvcc was found")
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


SIZES = {"clips": 2, "frames": 3, "tokens": 17, "height": 4, "width": 4, "channels": 8}


@needs_cuda
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clips": -1}, "clips must be at least 0, got -1"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"channels": -8}, "channels must be at least 1, got -8"),
        ({"height": -4, "width": -4}, "grid height must be at least 1, got -4"),
        ({"width": 0, "tokens": 1}, "grid width must be at least 1, got 0"),
        ({"tokens": 16}, "a grid of 4x4 and a class token are not 16 tokens"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
    ],
)
def test_sizes_that_no_grid_has_are_refused(changed: dict[str, int], message: str) -> None:
    sizes = {**SIZES, **changed}
    with pytest.raises(ValueError, match=f"mixer: {message}"):
        cuda.extension.MixerShape(*sizes.values(), True, True, True, False)


@needs_cuda
def test_switches_and_residuals_that_are_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="mixer: branches must be at least 1, got 0"):
        cuda.extension.MixerShape(*SIZES.values(), True, False, False, False)
    cuda.extension.MixerShape(2, 3, 1, 0, 0, 8, True, True, False, False)  # a class token alone
    with pytest.raises(ValueError, match="add_residual: rows, columns and tokens must be positive, got 4, 8 and 0"):
        cuda.extension.add_residual("float32", 0, 0, 0, 0, 4, 8, 0, True, 0)


@needs_cuda
@pytest.mark.skipif(not hasattr(cuda.extension, "HopperAdapterArgs"), reason="built without sm_90a")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 0}, "x is missing"),
        ({"up_weight": 1026}, "up_weight starts 2 bytes after a multiple of 16"),
        ({"y": 1024}, "y is written where x is read"),
        ({"shared": True}, "one branch alone shares no projections"),
        ({"difference_taps": 0}, "neither branch has taps"),
        ({"frames": 65}, "frames = 65 is no multiple of 1 from 1 to 64"),
        ({"grid_height": -4, "grid_width": -4}, "grid_height = -4 is no multiple of 1 from 1 to"),
        ({"width": 96}, "width = 96 is no multiple of 64 from 64 to"),
        ({"bottleneck": 0}, "bottleneck = 0 is no multiple of 64 from 64 to"),
    ],
)
def test_the_launch_on_hopper_says_what_is_wrong(changed: dict[str, int], message: str) -> None:
    names = ("x", "h", "u", "counters", "down_weight", "up_weight", "class_bias", "patch_bias")
    difference = ("difference_taps", "difference_bias", "difference_down_bias")
    sizes = {"clips": 1, "frames": 2, "grid_height": 4, "grid_width": 4, "width": 64, "bottleneck": 64}
    fields = {**dict.fromkeys((*names, *difference), 1024), "y": 2048, **sizes, **changed}
    args = cuda.extension.HopperAdapterArgs()
    for name, value in fields.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=f"hopper_adapter_forward: {message}"):
        cuda.extension.hopper_adapter_forward(args, 0)


@needs_cuda
def test_the_built_module_has_ptx_for_newer_gpus(cuda_build: ModuleType, fake_nvcc: Path) -> None:
    nvidia = pytest.importorskip("triton.backends.nvidia")
    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    listing = subprocess.run(
        [tool, "--list-ptx", cuda.extension.__file__], capture_output=True, text=True, check=True
    ).stdout
    flags = cuda_build.find_nvcc().code_flags(tuple(cuda.extension.architectures.split()))
    wanted = {flag.rpartition("_")[2] for flag in flags if "code=compute" in flag}
    assert set(re.findall(r"\.sm_(\d+)\.ptx", listing)) == wanted


@needs_cuda
def test_workspace_stays_small() -> None:
    # The workspace at B=32, T=8, ViT-B/16, R=384: a few MB beside 77 MB of h.
    shape = cuda.extension.MixerShape(32, 8, 197, 14, 14, 384, True, True, True, False)
    assert 4 * cuda.extension.mixer_workspace("bfloat16", shape, 0) < 5e6
    many = cuda.extension.MixerShape(10_000, 8, 197, 14, 14, 384, True, True, True, False)
    assert 4 * cuda.extension.mixer_workspace("bfloat16", many, 0) < 20e6
