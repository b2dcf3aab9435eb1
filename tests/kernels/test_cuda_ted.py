"""ted_adapter on the CUDA backend without a GPU: its kernels in the emulator of tests/csrc, on CPU tensors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.kernels import cuda, cuda_ted, dispatch, implementations
from m2clip.kernels.operands import Branches, Geometry

from .proof import assert_as_exact
from .test_native_ted import LAYOUTS, case, ted_weights, tensors

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def build_emulated() -> Path:
    """m2clip._cuda as setup.py builds it, but by a plain C++ compiler and with the emulator in CUDA's place."""
    sys.path.insert(0, str(ROOT / "csrc"))
    try:
        import native_build
    finally:
        sys.path.pop(0)
    about = [f'-DM2CLIP_{name}="emulator"' for name in ("COMPILER", "FLAGS", "ARCHITECTURES")]
    emulated = ("-fno-strict-aliasing", "-Wno-unknown-pragmas", "-I", str(ROOT / "tests" / "csrc"))
    cuda = native_build.SOURCE / "cuda"
    try:
        compiler = native_build.find_compiler()
        units = [
            native_build.Unit(source, source.stem, (*emulated, "-x", "c++"))
            for source in sorted(cuda.glob("*.cu"))
            if not source.stem.startswith("hopper")
        ]
        units.append(native_build.Unit(cuda / "mixer_plan.cpp", "mixer_plan"))
        units.append(native_build.Unit(cuda / "module.cpp", "module", (*native_build.module_headers(), *about)))
        flags = ("-O2", *native_build.FLAGS[1:])
        with native_build.taking_turns():
            folder = native_build.BUILD / "emulated"
            return native_build.run_ninja(folder, compiler, units, "_cuda.so", flags, ("-shared",))
    except native_build.CannotBuild as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def extension() -> Any:
    # Under its own name the installed extension may be loaded already.
    spec = importlib.util.spec_from_file_location("_cuda", build_emulated())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated(extension: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CUDA backend under the name of the one for CPU tensors."""
    monkeypatch.setattr(cuda, "extension", extension)
    monkeypatch.setattr(cuda, "stream", lambda: 0)
    monkeypatch.setitem(implementations._MODULES, ("ted_adapter", "native"), "cuda_ted")
    monkeypatch.setitem(dispatch._DTYPES, "native", DTYPES)
    yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_is_as_exact_as_eager(layout: str, dtype: torch.dtype, emulated: None) -> None:
    shapes = ((1, (1, 1), 19, 1), (3, (5, 9), 24, 3), (8, (7, 7), 32, 1), (2, (14, 14), 16, 1), (2, (3, 4), 13, 0))
    for turn, (frames, grid, width, clips) in enumerate(shapes):
        options = {"class_token": turn % 2 == 0, "sequential": turn == 1, "strided": turn == 2}
        run = case(frames, grid, layout, clips, width=width, **options)
        assert_as_exact(run(torch.float64, "reference"), run(dtype, "reference"), run(dtype, "native"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_tokens_that_are_left_out(layout: str, emulated: None) -> None:
    for (frames, grid, sequential), dtype in zip(((3, (5, 9), False), (2, (4, 4), True)), DTYPES, strict=False):
        run = case(frames, grid, layout, 2, width=24, sequential=sequential, patches_only=True)
        assert_as_exact(run(torch.float64, "reference"), run(dtype, "reference"), run(dtype, "native"))


def test_only_what_is_needed_is_computed(emulated: None) -> None:
    geometry, generator = Geometry(2, (3, 3), True), torch.Generator().manual_seed(0)
    branches = Branches.of(ted_weights(tensors(24, 16, "both", generator), "both"), torch.float32)
    x, dy = (torch.randn(4, 10, 24, generator=generator) for _ in range(2))
    y, h = cuda_ted.forward(x, branches, geometry, True, True)
    without, nothing = cuda_ted.forward(x, branches, geometry, False, False)
    torch.testing.assert_close(y - x, without)
    assert nothing.numel() == 0
    dx, gradients = cuda_ted.backward(dy, x, h, branches, geometry, True, True, True)
    only_x, none = cuda_ted.backward(dy, x, h, branches, geometry, True, True, False)
    no_x, only_w = cuda_ted.backward(dy, x, h, branches, geometry, True, False, True)
    assert torch.equal(dx, only_x) and none == [] and no_x.numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, only_w, strict=True))


def test_one_launch_says_why_not(emulated: None) -> None:
    geometry = Geometry(1, (2, 2), False)
    branches = Branches.of(ted_weights(tensors(24, 16, "both", torch.Generator()), "both"), torch.float32)
    x = torch.zeros(1, 4, 24)
    with pytest.raises(ValueError, match="cannot be one launch here: the extension was built without sm_90a"):
        cuda_ted.forward(x, branches, geometry, True, True, plan="one launch")
    with pytest.raises(ValueError, match="unknown plan 'two'"):
        cuda_ted.forward(x, branches, geometry, True, True, plan="two")
