"""What lies between the two projections of the TED-Adapter, against a memory copy of the same bytes.

    python benchmarks/mixer_speed.py
    python benchmarks/mixer_speed.py --shapes b16-r384 --warm

The mixer takes hidden rows of both branches, (B, T, L, R) each, to their convolved rows. Forward it reads and writes
them once; backward it reads the rows and the gradient of its output, and writes the gradient of the rows. The copy is
of the same rows, in the same state of the caches: overwritten before each call, or with --warm left as the call before
left them. Writes mixer_speed.json and mixer_speed.png.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command
from benchmarks.adapter_speed import CPU_CASES, GPU_CASES
from benchmarks.adapter_variants import SHIFT_AND_ADD, Case, Inputs, shifted_mix
from benchmarks.framework import REFERENCE, Builder
from benchmarks.measure import ratio, summary
from benchmarks.workloads import Leaves, in_double, ted_weights
from m2clip import kernels
from m2clip.kernels import BranchWeights
from m2clip.kernels.dispatch import device_of
from m2clip.kernels.operands import Geometry
from m2clip.kernels.ops.ted import frame_difference, spatial_conv, temporal_conv

PASSES = {"forward": 2, "backward": 3}  # how often each moves the rows of both branches
MODULES = {"native": "native.extension", "triton": "triton.mixer", "cuda": "cuda.extension"}  # with a class Mixer
TRAINED = ("temporal.conv_weight", "temporal.conv_bias", "difference.conv_weight", "difference.conv_bias")
DOWN_BIAS = "difference.down_bias"
Mix = Callable[[Tensor, Tensor, Tensor, BranchWeights, BranchWeights, tuple[int, int]], tuple[Tensor, Tensor]]


class AutogradMixer:
    """A mixer written in PyTorch, differentiated by autograd; its backward pass does not run the forward pass again."""

    def __init__(self, problem: Problem, mix: Mix, leaves: Leaves) -> None:
        te, td = ted_weights(leaves, problem.layout)[:2]
        assert te is not None and td is not None
        dtype, grid = td.down_bias.dtype, problem.case.grid
        h = [part.to(dtype).requires_grad_() for part in problem.h]
        self.du = [part.to(dtype) for part in problem.du]
        self.trained = [*h, *(leaves[name] for name in (*TRAINED, DOWN_BIAS))]
        self.mix = lambda: mix(*h, td.down_bias, te, td, grid)
        self.u = self.mix()

    def forward(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.mix()

    def backward(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.u, self.trained, self.du, retain_graph=True)

    def runs(self) -> dict[str, Callable[[], object]]:
        return dict(zip(PASSES, (self.forward, self.backward), strict=True))

    def results(self) -> dict[str, Tensor]:
        h_te, h_td, *small = self.backward()
        return named(side_by_side(self.forward()), side_by_side((h_te, h_td)), *small)


class AcceleratedMixer:
    """The mixer of a backend."""

    def __init__(self, problem: Problem, backend: str) -> None:
        temporal, difference = (
            [problem.leaves[name].detach() for name in names] for names in (TRAINED[:2], (*TRAINED[2:], DOWN_BIAS))
        )
        make = importlib.import_module(f"m2clip.kernels.{MODULES[backend]}").Mixer
        self.mixer = make(temporal, difference, False, Geometry(problem.case.frames, problem.case.grid, True))
        self.h, self.du = side_by_side(problem.h), side_by_side(problem.du)
        self.u, self.dh = torch.empty_like(self.h), torch.empty_like(self.h)

    def forward(self) -> None:
        self.mixer.forward(self.h, self.u)

    def backward(self) -> tuple[Tensor, ...]:
        return self.mixer.backward(self.h, self.du, self.dh)

    def runs(self) -> dict[str, Callable[[], object]]:
        return dict(zip(PASSES, (self.forward, self.backward), strict=True))

    def results(self) -> dict[str, Tensor]:
        self.forward()
        te_weight, te_bias, _, td_weight, td_bias, td_down = self.backward()
        return named(self.u, self.dh, te_weight, te_bias, td_weight, td_bias, td_down)


def side_by_side(rows: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Both branches' rows (B, T, L, R) as one (B*T, L, 2R)."""
    return torch.cat([*rows], dim=-1).flatten(0, 1).contiguous()


def named(*tensors: Tensor) -> dict[str, Tensor]:
    """Output and gradients by name."""
    return dict(zip(("u", "d h", *(f"d {name}" for name in (*TRAINED, DOWN_BIAS))), tensors, strict=True))


def reference_mix(
    h_te: Tensor, h_td: Tensor, td_bias: Tensor, te: BranchWeights, td: BranchWeights, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The definition: (u_e, u_d), the class row of u_d 0."""
    change = frame_difference(h_td[:, :, 1:]) + td_bias
    return temporal_conv(h_te, te), F.pad(spatial_conv(change, td, grid), (0, 0, 1, 0))


class Problem(Inputs):
    """Hidden rows of both branches, the gradient of the mixer's output, and the weights between them, all random."""

    what = "Mixer of the TED-Adapter"
    compiled = (SHIFT_AND_ADD,)
    baselines = {}
    passes = tuple(PASSES)
    memory_on = ()

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        shape = (2, case.clips, case.frames, case.length, case.width)
        generator = torch.Generator(device).manual_seed(1)
        self.h, self.du = (
            torch.randn(shape, generator=generator, device=device).to(self.slope.dtype) for _ in range(2)
        )

    def exact(self) -> AutogradMixer:
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in in_double(self.leaves).items()}
        return AutogradMixer(self, reference_mix, leaves)

    def builders(self) -> tuple[dict[str, Builder], dict[str, str]]:
        mixes = {REFERENCE: lambda: reference_mix, SHIFT_AND_ADD: lambda: torch.compile(shifted_mix, dynamic=False)}
        found: dict[str, Builder] = {
            name: lambda make=make: AutogradMixer(self, make(), self.leaves) for name, make in mixes.items()
        }
        missing, states = {}, kernels.backend_states()
        for backend in MODULES:
            device, state = device_of(backend), states[backend]
            if not state.available:
                missing[f"m2clip {backend}"] = state.reason
            elif device != self.device.type:
                missing[f"m2clip {backend}"] = f"runs on a {device} device"
            else:
                found[f"m2clip {backend}"] = partial(AcceleratedMixer, self, backend)
        return found, missing

    def limits(self, which: str) -> dict[str, Callable[[], object]]:
        target = torch.empty_like(self.h)
        return {"copy": lambda: target.copy_(self.h)}

    def complete(self, numbers: dict[str, Any], which: str, seconds: Mapping[str, list[float]]) -> None:
        moved = numbers["bytes"] = PASSES[which] * self.h.nbytes
        copied = [taken * moved / (2 * self.h.nbytes) for taken in seconds["copy"]]
        numbers["copy"] = {"seconds": summary(copied), "bandwidth_gb_s": moved / summary(copied)["median"] / 1e9}
        for name, own in numbers["variants"].items():
            own["copy_fraction"] = ratio(copied, seconds[name])


def main() -> None:
    wide, large = (
        [case for case in cases if not case.shared and case.name != "tiny"] for cases in (CPU_CASES, GPU_CASES)
    )
    command.run(__file__, __doc__, Problem, {"cpu": wide, "cuda": large}, quick=("b16-r384",))


if __name__ == "__main__":
    main()
