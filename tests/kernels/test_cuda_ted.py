"""ted_adapter on the CUDA backend without a GPU: its kernels in the emulator of tests/csrc, on CPU tensors."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m2clip.kernels import dispatch
from m2clip.kernels.cuda import candidates
from m2clip.kernels.cuda import extension as cuda
from m2clip.kernels.cuda import ted as cuda_ted
from m2clip.kernels.operands import Branches, Geometry
from m2clip.kernels.ops.operator import IMPLEMENTATIONS
from m2clip.kernels.tuning import store
from m2clip.kernels.tuning.candidates import Shape
from tests.kernels.proof import assert_proven
from tests.kernels.test_native_ted import LAYOUTS, case, ted_weights, tensors

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def build_emulated() -> Path:
    """m2clip.kernels._cuda as setup.py builds it, but by a plain C++ compiler and with the emulator in CUDA's place."""
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
        flags = ("-Og", *native_build.FLAGS[1:])  # compiling takes longer than the tests
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
    monkeypatch.setitem(IMPLEMENTATIONS["ted_adapter"], "native", "cuda.ted")
    monkeypatch.setitem(dispatch._DTYPES, "native", DTYPES)
    yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_is_as_exact_as_eager(layout: str, dtype: torch.dtype, emulated: None) -> None:
    shapes = ((1, (1, 1), 19, 1), (3, (5, 9), 24, 3), (8, (7, 7), 32, 1), (2, (14, 14), 16, 1), (2, (3, 4), 13, 0))
    for turn, (frames, grid, width, clips) in enumerate(shapes):
        options = {"prefix": (1, 0, 5)[turn % 3], "sequential": turn == 1, "strided": turn == 2}
        run = case(frames, grid, layout, clips, width=width, **options)
        assert_proven(run, dtype, "native")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_tokens_that_are_left_out(layout: str, emulated: None) -> None:
    for (frames, grid, sequential), dtype in zip(((3, (5, 9), False), (2, (4, 4), True)), DTYPES, strict=False):
        run = case(frames, grid, layout, 2, width=24, sequential=sequential, patches_only=True)
        assert_proven(run, dtype, "native")


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


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend as on a Hopper GPU, with plans that only tell their names."""
    taken: list[str] = []

    def run(name: str, x: torch.Tensor, *_: Any) -> torch.Tensor:
        taken.append(name)
        return torch.zeros_like(x)

    monkeypatch.setattr(cuda, "extension", SimpleNamespace(hopper_adapter_forward=None))
    monkeypatch.setattr(cuda_ted, "architecture", lambda device: 90)
    for name in cuda_ted.PLANS:
        monkeypatch.setattr(cuda_ted, f"_{name}", partial(run, name))
    return taken


def adapter(layout: str = "both", dim: int = 64, width: int = 64) -> Branches:
    weights = ted_weights(tensors(dim, width, layout, torch.Generator().manual_seed(0)), layout)
    return Branches.of(weights, torch.bfloat16)


GEOMETRY = Geometry(2, (3, 3), True)
MISPLACED = torch.zeros(4 * 10 * 64 + 1, dtype=torch.bfloat16)[1:].view(4, 10, 64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": torch.float32}, "it has no kernel for torch.float32"),
        ({"geometry": GEOMETRY._replace(patches_only=True)}, "it takes class tokens as well"),
        ({"geometry": GEOMETRY._replace(num_frames=65)}, "65 frames are more than 64"),
        ({"geometry": Geometry(2, (0, 3), True)}, "a grid of 0x3 has no patches"),
        ({"branches": adapter(dim=96)}, "D = 96 is not a multiple of 64"),
        ({"branches": adapter(width=32)}, "R = 32 is not a multiple of 64"),
    ],
)
def test_one_launch_says_why_not(changed: dict[str, Any], message: str, hopper: list[str]) -> None:
    asked = {"branches": adapter(), "geometry": GEOMETRY, "dtype": torch.bfloat16, **changed}
    assert cuda_ted.plans(**asked) == ["launches"]
    x = torch.zeros(4, 10, asked["branches"].down_weight().shape[1], dtype=asked["dtype"])
    with pytest.raises(ValueError, match=f"cannot be one launch here: {message}"):
        cuda_ted.forward(x, asked["branches"], asked["geometry"], True, True, "one_launch")
    cuda_ted.forward(x, asked["branches"], asked["geometry"], True, True)
    assert hopper == ["launches"]


def test_one_launch_needs_its_gpu_and_its_build(hopper: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown plan 'two'; choose from launches, one_launch"):
        cuda_ted.forward(torch.zeros(4, 10, 64).bfloat16(), adapter(), GEOMETRY, True, True, plan="two")
    monkeypatch.setattr(cuda_ted, "architecture", lambda device: 120)
    why = cuda_ted.why_not_one_launch(adapter(), GEOMETRY, torch.bfloat16)
    assert why == "it is for GPUs of compute capability 9.0, not 12.0"
    monkeypatch.setattr(cuda, "extension", SimpleNamespace())
    why = cuda_ted.why_not_one_launch(adapter(), GEOMETRY, torch.bfloat16)
    assert why == "the extension was built without sm_90a"


def test_the_fastest_plan_that_was_measured_runs(
    hopper: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    store.forget()
    x, branches = torch.zeros(4, 10, 64, dtype=torch.bfloat16), adapter()
    assert cuda_ted.plans(branches, GEOMETRY, x.dtype) == ["launches", "one_launch"]
    cuda_ted.forward(x, branches, GEOMETRY, True, True)
    asked = store.key(cuda_ted.PLAN_KERNEL, *cuda_ted.plan_question(branches, x.dtype, 90))
    assert asked == "cuda_ted_adapter_plan 128 bfloat16 90"
    store.save("cpu", store.Measurements(configs={asked: ["one_launch"]}))
    cuda_ted.forward(x, branches, GEOMETRY, True, True)
    cuda_ted.forward(MISPLACED, branches, GEOMETRY, True, True)
    cuda_ted.forward(x[:0], branches, GEOMETRY, True, True)
    cuda_ted.forward(x, branches, GEOMETRY._replace(patches_only=True), True, True)
    cuda_ted.forward(x, branches, GEOMETRY, True, True, "launches")
    cuda_ted.forward(MISPLACED[:0], branches, GEOMETRY, True, True, "one_launch")
    assert hopper == ["launches", "one_launch", "launches", "launches", "launches", "launches", "launches"]
    with pytest.raises(ValueError, match="x starts 2 bytes after a multiple of 16"):
        cuda_ted.forward(MISPLACED, branches, GEOMETRY, True, True, "one_launch")
    store.forget()


def test_weights_that_one_launch_cannot_read(hopper: list[str]) -> None:
    branches = adapter("difference")
    moved = torch.zeros(64 * 64 + 8, dtype=torch.bfloat16)[4 : 4 + 64 * 64].view(64, 64)
    branches.difference[4] = moved
    x = torch.zeros(4, 10, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="up_weight starts 8 bytes after a multiple of 16"):
        cuda_ted.forward(x, branches, GEOMETRY, True, True, "one_launch")


def test_tune_measures_the_plans(hopper: list[str]) -> None:
    shape = Shape(64, 64, 2, (3, 3), 2, torch.bfloat16)
    (found,) = candidates.kernel_candidates(shape, torch.device("cpu"))
    assert (found.rule, found.others) == (cuda_ted.Plan("launches"), [cuda_ted.Plan("one_launch")])
    for plan in (found.rule, *found.others):
        found.run(plan)
    assert hopper == ["launches", "one_launch"]
    assert list(candidates.kernel_candidates(shape._replace(dtype=torch.float32), torch.device("cpu"))) == []
