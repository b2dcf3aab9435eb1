"""Calls of every operation on any shape, dtype, backend and device, with the same random numbers each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from m2clip import kernels
from m2clip.kernels import BranchWeights, MSTAWeights, TEDWeights, TimeLayout
from m2clip.kernels.operands import Branches, Geometry
from m2clip.kernels.ops.masked_words import IGNORE
from m2clip.kernels.ops.operator import implementation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Leaves = Mapping[str, Tensor]


@contextmanager
def planned(backend: str, plan: str) -> Iterator[None]:
    """Let a backend compute ted_adapter's forward pass by this plan."""
    module = implementation("ted_adapter", backend)
    before = module.forward
    module.forward = partial(before, plan=plan)
    try:
        yield
    finally:
        module.forward = before


class Workload(NamedTuple):
    """One call of an operation: fp64 leaves on the CPU, of which the first may be strided, and what takes them."""

    op: str
    name: str
    leaves: dict[str, Tensor]
    call: Callable[[Leaves, str], Tensor]
    strided: bool = False
    plans: Callable[[Leaves, str], list[str]] = lambda leaves, backend: []  # a backend's, its own choice first

    def placed(self, dtype: torch.dtype, device: torch.device = DEVICE) -> dict[str, Tensor]:
        """Leaves in a dtype; a loss's scale stays fp32, and its labels what they are."""
        placed = {
            name: leaf.to(device, torch.float32 if leaf.dim() == 0 else dtype)
            if leaf.is_floating_point()
            else leaf.to(device)
            for name, leaf in self.leaves.items()
        }
        if self.strided:
            first = next(iter(placed))
            placed[first] = _transposed_in_memory(placed[first])
        return placed

    def slope(self, y: Tensor) -> Tensor:
        """Gradient of an output; the same values for every backend."""
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.device, y.dtype)
        return _transposed_in_memory(values) if self.strided else values

    def results(self, leaves: Leaves, backend: str, slope: Tensor | None = None) -> list[Tensor]:
        """The output and the gradients of all leaves; without a slope given it is made on the CPU."""
        own = {name: leaf.detach().requires_grad_(leaf.is_floating_point()) for name, leaf in leaves.items()}
        y = self.call(own, backend)
        trained = [leaf for leaf in own.values() if leaf.requires_grad]
        return [y.detach(), *torch.autograd.grad(y, trained, self.slope(y) if slope is None else slope)]


def in_double(leaves: Leaves) -> dict[str, Tensor]:
    """The same values in double precision."""
    return {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in leaves.items()}


def _transposed_in_memory(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _leaves(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random inputs of these sizes in fp64, a projection's weights divided by the root of what they sum over."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name, leaf in made.items():
        if name.endswith(("down_weight", "shared_weight", "up_weight")):
            leaf *= leaf.shape[1] ** -0.5
    return made


def _ted_sizes(dim: int, width: int, layout: str) -> dict[str, tuple[int, ...]]:
    """Of the weights by branch and field; shared projections appear once, under "temporal"."""
    projections = {"down_weight": (width, dim), "down_bias": (width,), "up_weight": (dim, width), "up_bias": (dim,)}
    sizes: dict[str, tuple[int, ...]] = {}
    for branch, taps in (("temporal", (3,)), ("difference", (3, 3))):
        if layout in ("both", branch) or (layout, branch) == ("shared", "temporal"):
            sizes |= {f"{branch}.{field}": shape for field, shape in projections.items()}
        if layout in ("both", "shared", branch):
            sizes |= {f"{branch}.conv_weight": (width, 1, *taps), f"{branch}.conv_bias": (width,)}
    return sizes


def ted_weights(leaves: Leaves, layout: str) -> TEDWeights:
    """The weights of a layout out of leaves by branch and field."""

    def branch(name: str) -> BranchWeights | None:
        if f"{name}.conv_weight" not in leaves:
            return None
        source = "temporal" if layout == "shared" else name
        homes = (name if field.startswith("conv") else source for field in BranchWeights._fields)
        return BranchWeights(
            *(leaves[f"{home}.{field}"] for home, field in zip(homes, BranchWeights._fields, strict=True))
        )

    return TEDWeights(branch("temporal"), branch("difference"), layout == "shared")


def ted(
    clips: int,
    frames: int,
    grid: tuple[int, int],
    dim: int,
    width: int,
    layout: str = "both",
    class_token: bool = True,
    sequential: bool = False,
    strided: bool = False,
    patches_only: bool = False,
) -> Workload:
    """ted_adapter; layout: both, shared, temporal or difference."""
    shape = (clips * frames, grid[0] * grid[1] + class_token, dim)
    leaves = _leaves({"x": shape, **_ted_sizes(dim, width, layout)})

    def call(leaves: Leaves, backend: str) -> Tensor:
        x, *_ = leaves.values()
        weights = ted_weights(leaves, layout)
        options = {"grid": grid, "class_token": class_token, "sequential": sequential, "patches_only": patches_only}
        return kernels.ted_adapter(x, weights, frames, backend=backend, **options)

    def plans(leaves: Leaves, backend: str) -> list[str]:
        x, *_ = leaves.values()
        branches = Branches.of(ted_weights(leaves, layout), x.dtype)
        module = implementation("ted_adapter", backend)
        found = getattr(module, "plans", lambda *_: [])
        return found(branches, Geometry(frames, grid, class_token, patches_only), x.dtype)

    name = f"B={clips} T={frames} {grid[0]}x{grid[1]} D={dim} R={width} {layout}"
    return Workload("ted_adapter", name, leaves, call, strided, plans)


def bottleneck(
    shape: tuple[int, ...],
    width: int,
    activation: str = "gelu",
    scale: float = 1.0,
    residual: bool = True,
    strided: bool = False,
) -> Workload:
    dim, names = shape[-1], ("x", "down_weight", "down_bias", "up_weight", "up_bias")
    leaves = _leaves(dict(zip(names, (shape, (width, dim), (width,), (dim, width), (dim,)), strict=True)))
    options = {"activation": activation, "scale": scale, "residual": residual}

    def call(leaves: Leaves, backend: str) -> Tensor:
        return kernels.bottleneck_adapter(*leaves.values(), backend=backend, **options)

    return Workload("bottleneck_adapter", f"{shape} R={width} {activation}", leaves, call, strided)


def msta(
    shape: tuple[int, int, int],
    width: int,
    time: TimeLayout | None,
    after_up: bool = False,
    strided: bool = False,
    scale: float = 0.3,
) -> Workload:
    """msta_adapter on tokens (S, L, D); without a time layout it is the text's."""
    dim = shape[-1]
    projections = ((width, dim), (width,), (width, width), (width,), (dim, width), (dim,))
    sizes = (shape, shape, *projections, *(((dim, 1, 3), (dim,)) if time is not None else ()))
    leaves = _leaves(dict(zip(("x", "base", *MSTAWeights._fields), sizes, strict=False)))

    def call(leaves: Leaves, backend: str) -> Tensor:
        x, base, *tensors = leaves.values()
        weights = MSTAWeights(*tensors, after_up=after_up)
        return kernels.msta_adapter(x, base, weights, time, scale=scale, backend=backend)

    reading = "text" if time is None else f"{tuple(time)}{' after up' if after_up else ''}"
    return Workload("msta_adapter", f"{shape} d={width} {reading}", leaves, call, strided)


def gelu(shape: tuple[int, ...], activation: str = "quick_gelu", strided: bool = False) -> Workload:
    leaves = _leaves({"h": shape, "bias": shape[-1:]})
    leaves["h"] *= 2

    def call(leaves: Leaves, backend: str) -> Tensor:
        return kernels.bias_gelu(*leaves.values(), activation, backend=backend)

    return Workload("bias_gelu", f"{shape} {activation}", leaves, call, strided)


def loss(op: str, rows: int, columns: int, dim: int, strided: bool = False, scale: float = 30.0) -> Workload:
    """cosine_cross_entropy or soft_target_kl on features of different lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = (0.1 + 4 * torch.rand(size, 1, generator=generator) for size in (rows, columns))
    v, w = (torch.randn(len(length), dim, generator=generator).double() * length for length in lengths)
    labels = torch.randint(0, max(columns, 1), (rows,), generator=generator)

    def call(leaves: Leaves, backend: str) -> Tensor:
        return getattr(kernels, op)(*leaves.values(), backend=backend)

    leaves = {"v": v, "w": w, "labels": labels, "logit_scale": torch.tensor(scale, dtype=torch.float64)}
    return Workload(op, f"{rows}x{columns} D={dim}", leaves, call, strided)


def masked_words(positions: int, masked: int, words: int, dim: int) -> Workload:
    """masked_word_loss, which has one implementation on all devices."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(words, dim, generator=generator, dtype=torch.float64) * dim**-0.5
    targets = torch.full((positions,), IGNORE)
    places = torch.randperm(positions, generator=generator)[:masked]
    targets[places] = torch.randint(0, words, (masked,), generator=generator)
    leaves = {"hidden": hidden, "weight": weight, "bias": torch.zeros(words, dtype=torch.float64), "targets": targets}

    def call(leaves: Leaves, backend: str) -> Tensor:
        return kernels.masked_word_loss(*leaves.values())

    return Workload("masked_word_loss", f"{masked} of {words} words D={dim}", leaves, call)
