"""The examples: adapters in other libraries' towers do nothing at first, train alone, and mix frames once trained."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "drop_in.py"
TOWERS = ("timm", "transformers")
FRAMES = 4


@pytest.fixture(scope="module")
def drop_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drop_in", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(drop_in: ModuleType, library: str) -> nn.Module:
    pytest.importorskip(library)
    torch.manual_seed(0)
    return (drop_in.random_timm if library == "timm" else drop_in.random_clip)().eval()


def adapt(drop_in: ModuleType, library: str, tower: nn.Module) -> nn.Module:
    return (drop_in.adapt_timm if library == "timm" else drop_in.adapt_clip)(tower, FRAMES, width=16)


def features(tower: nn.Module, images: Tensor) -> Tensor:
    output = tower(images)
    return output if isinstance(output, Tensor) else output.pooler_output


def clips(number: int = 2) -> Tensor:
    return torch.randn(number * FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("library", TOWERS)
def test_new_adapters_change_nothing(drop_in: ModuleType, library: str) -> None:
    tower = build(drop_in, library)
    with torch.no_grad():
        before = features(tower, clips())
        after = features(adapt(drop_in, library, tower), clips())
    assert torch.equal(before, after)


@pytest.mark.parametrize("library", TOWERS)
def test_only_adapters_get_gradients(drop_in: ModuleType, library: str) -> None:
    tower = adapt(drop_in, library, build(drop_in, library))
    features(tower, clips()).square().sum().backward()
    with_gradient = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert with_gradient == drop_in.trained_parameters(tower).keys()
    assert all(".adapter." in name for name in with_gradient)
    # Convolutions and biases begin at zero: theirs are the first gradients that are not.
    moved = [name for name in with_gradient if tower.get_parameter(name).grad.abs().max() > 0]
    assert sum(name.endswith("temporal.conv.weight") for name in moved) == 2
    assert sum(name.endswith("difference.conv.weight") for name in moved) == 2


@pytest.mark.parametrize("library", TOWERS)
@pytest.mark.parametrize("branch", ["temporal", "difference"])
def test_trained_adapters_mix_the_frames_of_a_clip_only(drop_in: ModuleType, library: str, branch: str) -> None:
    tower = adapt(drop_in, library, build(drop_in, library))
    images = clips()
    changed = images.clone()
    changed[0] += 1.0  # the first frame of the first clip

    def reached() -> list[bool]:
        with torch.no_grad():
            return (features(tower, images) != features(tower, changed)).any(dim=1).tolist()

    assert reached() == [True] + [False] * (2 * FRAMES - 1)
    for module in tower.modules():
        if isinstance(module, drop_in.TEDAdapter):
            nn.init.normal_(getattr(module, branch).conv.weight)
    assert reached() == [True, True, True] + [False] * (2 * FRAMES - 3)  # one frame further with each of the two blocks


@pytest.mark.parametrize("library", TOWERS)
def test_an_optimiser_step_trains_them(drop_in: ModuleType, library: str) -> None:
    tower = adapt(drop_in, library, build(drop_in, library))
    images, target = clips(), torch.randn(2 * FRAMES, 96)
    optimiser = torch.optim.AdamW(drop_in.trained_parameters(tower).values(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = (features(tower, images) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_script_runs() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    for library in TOWERS:
        assert f"{library}: " in done.stdout
