"""The TED-Adapter in every formulation that adapter_speed.py times, all of them on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import framework
from benchmarks.authors import TEDAdapter as AuthorsAdapter
from benchmarks.framework import BOTH, PASSES, REFERENCE, Builder, Variant
from benchmarks.workloads import planned, ted, ted_weights
from m2clip import kernels
from m2clip.kernels import BranchWeights, TEDWeights

AUTHORS = "authors eager"
AUTHORS_NO_CUDNN = "authors no cuDNN"
AUTHORS_COMPILED = "authors compiled"
AUTHORS_AUTOTUNED = "authors autotuned"
SHIFT_AND_ADD = "shift-add compiled"
COMPILED = (AUTHORS_COMPILED, AUTHORS_AUTOTUNED, SHIFT_AND_ADD)
LARGE_COPY, LARGE_GEMM = 2**30, 8192  # bytes, and rows of three square matrices: a GPU's ceilings


@dataclass(frozen=True)
class Case:
    """One workload: B clips of T frames, a grid of patches and a class token of width D, bottleneck R."""

    name: str
    clips: int
    frames: int
    grid: tuple[int, int]
    dim: int
    width: int
    dtype: str = "float32"
    shared: bool = False

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1] + 1

    @property
    def tokens(self) -> int:
        return self.clips * self.frames * self.length

    @property
    def hidden(self) -> int:
        """Columns of the down-projection: both branches' side by side, or the one they share."""
        return self.width if self.shared else 2 * self.width

    def flops(self, backward: bool) -> int:
        """Of the GEMMs, to which the convolutions add less than two per cent."""
        return (3 if backward else 1) * 2 * 2 * self.tokens * self.dim * self.hidden

    def least_bytes(self, backward: bool) -> int:
        """Traffic that nothing can avoid: x in, y out; with backward also dy and x in, dx out; and the weights."""
        rows, weights = self.tokens * self.dim, 2 * self.dim * self.hidden
        return ((5 if backward else 2) * rows + (3 if backward else 1) * weights) * getattr(torch, self.dtype).itemsize


class Inputs(framework.Problem):
    """Tokens x (B*T, L, D) and weights by branch and field, none of them zero.

    Shared projections are held once, under "temporal".
    """

    # A wrong border, tap or bias shows with ten times as much and more.
    tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
    overwrites = ("cpu", "cuda")

    def __init__(self, case: Case, device: torch.device) -> None:
        self.layout = "shared" if case.shared else "both"
        work = ted(case.clips, case.frames, case.grid, case.dim, case.width, self.layout)
        super().__init__(case, device, work)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: leaf for name, leaf in self.leaves.items() if name != "x"}

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        shape = case["shape"]
        height, width = shape["grid"]
        tokens = f"B={shape['clips']} T={shape['frames']} {height}x{width}+1 D={shape['dim']} R={shape['width']}"
        shared = " shared projections" if shape["projections"] == "shared" else ""
        return f"{tokens} {shape['dtype']}{shared}"

    def describe(self) -> dict[str, Any]:
        names = ("clips", "frames", "dim", "width", "dtype", "tokens")
        shape = {name: getattr(self.case, name) for name in names}
        projections = "shared" if self.case.shared else "separate"
        shape |= {"grid": list(self.case.grid), "class_token": True, "projections": projections}
        return {"name": self.case.name, "shape": shape}

    def distance(self, found: Tensor, true: Tensor) -> Tensor:
        """The largest error, as a share of the largest value."""
        return (found - true).abs().max() / true.abs().max()


class Problem(Inputs):
    """The whole adapter."""

    what = "TED-Adapter"
    products = (2, 6)
    baselines = {"authors": (AUTHORS, AUTHORS_NO_CUDNN), "torch.compile": COMPILED}
    compiled = COMPILED
    slow = (AUTHORS_AUTOTUNED,)
    memory_on = ("cpu", "cuda")
    constants = {"cache_bytes_overwritten": framework.CACHE_BYTES}

    def describe(self) -> dict[str, Any]:
        chosen = {f"m2clip {backend}": self.plans(backend)[:1] for backend in kernels.BACKENDS[1:]}
        return {**super().describe(), "plans": {name: plan[0] for name, plan in chosen.items() if plan}}

    def plans(self, backend: str) -> list[str]:
        """The plans of a backend that runs here, its own choice first."""
        return self.work.plans(self.leaves, backend) if kernels.backend_states()[backend].available else []

    def on(self, backend: str, plan: str | None = None) -> Variant:
        """This library's operation on one of its backends, by one of its plans where it has several."""
        case, x, weights = self.case, self.leaves["x"], ted_weights(self.leaves, self.layout)
        made = self.variant(lambda: kernels.ted_adapter(x, weights, case.frames, grid=case.grid, backend=backend))
        if plan is not None:
            made.surroundings = partial(planned, backend, plan)
        return made

    def on_backend(self, backend: str) -> dict[str, Builder]:
        others = {f"m2clip {backend} {plan}": partial(self.on, backend, plan) for plan in self.plans(backend)[1:]}
        return {**super().on_backend(backend), **others}

    def plain(self) -> dict[str, Builder]:
        found: dict[str, Builder] = {AUTHORS: self.authors}
        if self.device.type == "cuda":
            found[AUTHORS_NO_CUDNN] = partial(self.authors, cudnn=False)
        found[AUTHORS_COMPILED] = partial(self.authors, mode="default")
        found[AUTHORS_AUTOTUNED] = partial(self.authors, mode="max-autotune")
        found[SHIFT_AND_ADD] = self.shift_and_add
        found[REFERENCE] = partial(self.on, "reference")
        return found

    def authors(self, cudnn: bool = True, mode: str | None = None) -> Variant:
        """The authors' module; compiled where a mode of torch.compile is given."""
        case, x = self.case, self.leaves["x"].detach()
        module = AuthorsAdapter(case.dim, case.width, case.frames)
        if case.shared:  # both branches' projections are one, and the up-projection's bias enters once
            module.offset_adapter.fc1 = module.fc1
            module.offset_adapter.fc2 = nn.Linear(case.width, case.dim, bias=False)
        trained = {"x": x.transpose(0, 1).contiguous().requires_grad_()}
        for name, leaf in self.weights.items():
            branch, rest = name.split(".")
            part, kind = rest.split("_")
            owner = getattr(module if branch == "temporal" else module.offset_adapter, _THEIR_NAMES[part])
            trained[name] = nn.Parameter(leaf.detach().reshape(getattr(owner, kind).shape))
            setattr(owner, kind, trained[name])
        if case.shared:
            module.offset_adapter.fc2.weight = module.fc2.weight
        slope, surroundings = self.slope.transpose(0, 1).contiguous(), nullcontext if cudnn else _without_cudnn
        call: Callable[[Tensor], Tensor] = module
        if mode is not None:
            call = torch.compile(module, dynamic=False, mode=mode)
            if mode == "max-autotune" and self.device.type == "cuda":
                surroundings = _graph_step
        return LengthFirst(lambda: call(trained["x"]), trained, slope, surroundings)

    def shift_and_add(self) -> Variant:
        """What a compiler can fuse best: two stacked GEMMs, and between them sums of shifted slices."""
        case, x, weights = self.case, self.leaves["x"], ted_weights(self.leaves, self.layout)
        call = torch.compile(lambda x: _shift_and_add(x, weights, case), dynamic=False)
        return self.variant(lambda: call(x))

    def forward_flops(self) -> int:
        return self.case.flops(backward=False)

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        case, weights = self.case, self.weights
        branches = ("temporal",) if case.shared else ("temporal", "difference")

        def stacked(name: str, dim: int = 0) -> Tensor:
            return torch.cat([weights[f"{branch}.{name}"].detach() for branch in branches], dim)

        down, down_bias, up = stacked("down_weight"), stacked("down_bias"), stacked("up_weight", 1)
        up_bias = weights["temporal.up_bias"].detach()
        x, dy = self.leaves["x"].detach().flatten(0, 1), self.slope.flatten(0, 1)
        u, dh = torch.randn(2, case.tokens, case.hidden, device=self.device).to(x.dtype)

        def forward() -> Any:
            return torch.addmm(down_bias, x, down.T), torch.addmm(up_bias, u, up.T)

        def backward() -> Any:
            return *forward(), dy @ up, dy.T @ u, dh @ down, dh.T @ x

        return dict(zip(PASSES, (forward, backward), strict=True))

    def limits(self, which: str) -> dict[str, Callable[[], object]]:
        """The bare products, and what runs at the device's limits: a large copy, on a GPU a large product."""
        size = LARGE_COPY if self.device.type == "cuda" else framework.CACHE_BYTES
        source, target = torch.ones(2, size, dtype=torch.uint8, device=self.device)
        runs = {**super().limits(which), "copy": lambda: target.copy_(source)}
        if self.device.type == "cuda":
            dtype = self.slope.dtype
            a, b, out = (torch.randn(LARGE_GEMM, LARGE_GEMM, device=self.device).to(dtype) for _ in range(3))
            runs["gemm"] = lambda: torch.mm(a, b, out=out)
        return runs

    def complete(self, numbers: dict[str, Any], which: str, seconds: Mapping[str, list[float]]) -> None:
        super().complete(numbers, which, seconds)
        copied = 2 * (LARGE_COPY if self.device.type == "cuda" else framework.CACHE_BYTES)  # read and written
        bandwidth = copied / numbers["copy"]["seconds"]["median"]
        numbers["copy"] |= {"bytes": copied, "bandwidth_gb_s": bandwidth / 1e9}
        least = numbers["least_bytes"] = self.case.least_bytes(which == BOTH)
        if "gemm" in numbers:
            multiplied = 2 * LARGE_GEMM**3
            rate = multiplied / numbers["gemm"]["seconds"]["median"]
            numbers["gemm"] |= {"flops": multiplied, "throughput_tflop_s": rate / 1e12}
            numbers["least_seconds"] = max(numbers["flops"] / rate, least / bandwidth)
        for own in numbers["variants"].values():
            own["copy_fraction"] = least / bandwidth / own["seconds"]["median"]
            if "least_seconds" in numbers:
                own["least_fraction"] = numbers["least_seconds"] / own["seconds"]["median"]

    def memory_unknown(self, name: str) -> str:
        if self.device.type == "cuda" and name == AUTHORS_AUTOTUNED:
            return "CUDA graphs keep a pool of their own"
        return super().memory_unknown(name)


class LengthFirst(Variant):
    """Tokens travel as (L, B*T, D)."""

    def results(self) -> dict[str, Tensor]:
        tokens = ("y without gradients", "y", "d x")
        return {name: found.transpose(0, 1) if name in tokens else found for name, found in super().results().items()}


_THEIR_NAMES = {"down": "fc1", "conv": "conv", "up": "fc2"}


@contextmanager
def _without_cudnn() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=False):
        yield


@contextmanager
def _graph_step() -> Iterator[None]:
    """Tells CUDA graphs that the outputs of the call before may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()
    yield


def _shift_and_add(x: Tensor, weights: TEDWeights, case: Case) -> Tensor:
    te, td = weights.temporal, weights.difference
    assert te is not None and td is not None
    shape = (case.clips, case.frames, case.length)
    if case.shared:
        h_te = h_td = F.linear(x, te.down_weight).view(*shape, -1)
    else:
        hidden = F.linear(x, torch.cat([te.down_weight, td.down_weight]))
        h_te, h_td = hidden.view(*shape, -1).chunk(2, dim=-1)
    u_te, u_td = shifted_mix(h_te + te.down_bias, h_td, td.down_bias, te, td, case.grid)
    patch = torch.arange(case.length, device=x.device)[:, None] > 0
    if case.shared:
        return x + F.linear((u_te + u_td).reshape(*x.shape[:2], -1), te.up_weight, te.up_bias)
    mixed = torch.cat([u_te, u_td], dim=-1).reshape(*x.shape[:2], -1)
    up = F.linear(mixed, torch.cat([te.up_weight, td.up_weight], dim=1))
    return x + up + te.up_bias + torch.where(patch, td.up_bias, 0)


def shifted_mix(
    h_te: Tensor, h_td: Tensor, td_bias: Tensor, te: BranchWeights, td: BranchWeights, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The mixer as sums of shifted slices: hidden (B, T, L, R) of both branches -> (u_e, u_d); u_d's class row is 0."""
    frames = F.pad(h_te, (0, 0, 0, 0, 1, 1))
    before, here, after = te.conv_weight[:, 0].unbind(-1)
    u_te = frames[:, :-2] * before + h_te * here + frames[:, 2:] * after + te.conv_bias
    patches = h_td[:, :, 1:]
    change = F.pad(patches[:, 1:] - patches[:, :-1], (0, 0, 0, 0, 1, 0)) + td_bias
    height, width = grid
    image = F.pad(change.unflatten(2, grid), (0, 0, 1, 1, 1, 1))
    total = td.conv_bias
    for row in range(3):
        for column in range(3):
            shifted = image[:, :, row : row + height, column : column + width]
            total = total + shifted * td.conv_weight[:, 0, row, column]
    return u_te, F.pad(total.flatten(2, 3), (0, 0, 1, 0))
