"""What `m2clip selfcheck` runs: every operation on shapes that exercise its branches, edges and odd widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operands import BranchWeights, MSTAWeights, TEDWeights, TimeLayout
from .ops.bottleneck import ACTIVATIONS, bottleneck_adapter
from .ops.gelu import GELUS, bias_gelu
from .ops.losses import cosine_cross_entropy, soft_target_kl
from .ops.masked_words import IGNORE, masked_word_loss, masked_word_reference
from .ops.msta import msta_adapter
from .ops.ted import ted_adapter
from .verification.keys import Call, ted_layout

Tensors = dict[str, Tensor]


class Case(NamedTuple):
    """One call of an operation; all its inputs get a gradient, the first one is the operation's first argument."""

    op: str
    name: str
    inputs: Callable[[], Tensors]  # in double precision, the same at every call
    run: Callable[[Tensors, str], Tensor]  # with a backend's name
    strided: bool = False  # whether the first input and the output's gradient are not contiguous
    # In place of the reference backend, for an operation that has none.
    reference: Callable[[Tensors, str], Tensor] | None = None
    call: Call | None = None  # where backends have several plans for it

    def output_gradient(self, output: Tensor) -> Tensor:
        """The same values for every backend; 1 for a loss."""
        if output.dim() == 0:
            return torch.ones_like(output)
        values = _random(torch.Generator().manual_seed(1), *output.shape).to(output)
        return _strided(values) if self.strided else values


def all_cases() -> Iterator[Case]:
    """Every case, small ones of an operation first."""
    yield from map(ted_case, _TED)
    yield from _bottleneck_cases()
    yield from _gelu_cases()
    yield from map(msta_case, _MSTA)
    yield from _loss_cases()
    yield _masked_word_case(words=9, vocabulary=37, dim=13)
    yield _masked_word_case(words=60, vocabulary=1000, dim=64)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _strided(x: Tensor) -> Tensor:
    """The same values in another order of memory: rows of the second dimension first, with a gap behind each."""
    wider = x.new_empty(x.shape[1], x.shape[0], x.shape[2] + 3)
    wider[..., : x.shape[2]] = x.transpose(0, 1)
    return wider[..., : x.shape[2]].transpose(0, 1)


def _drawn(shapes: dict[str, tuple[int, ...]], strided: bool = False) -> Tensors:
    """Random tensors of these shapes; weights keep what passes through them about as large as it was."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        factor = 0.5 if name.endswith("conv_weight") else shape[1] ** -0.5 if name.endswith("weight") else 1.0
        tensors[name] = _random(generator, *shape) * factor
        if strided and len(tensors) == 1:
            tensors[name] = _strided(tensors[name])
    return tensors


def _projections(dim: int, width: int, before: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of a bottleneck's projections, with this before their names."""
    shapes = {"down_weight": (width, dim), "down_bias": (width,), "up_weight": (dim, width), "up_bias": (dim,)}
    return {before + name: shape for name, shape in shapes.items()}


class TedShape(NamedTuple):
    frames: int
    grid: tuple[int, int]
    dim: int
    width: int
    prefix: int = 1  # tokens in front of the patches
    branches: str = "both"  # both, temporal, difference or shared
    sequential: bool = False
    strided: bool = False
    clips: int = 2
    patches_only: bool = False

    def __str__(self) -> str:
        switches = (
            "patches only" if self.patches_only else "",
            f"{self.prefix} prefix tokens" if self.prefix > 1 else "class token" if self.prefix else "no class token",
            self.branches,
            "sequential" if self.sequential else "",
            "strided" if self.strided else "",
        )
        height, width = self.grid
        shape = f"T={self.frames}, {height}x{width}, D={self.dim}, R={self.width}"
        return ", ".join((shape, *filter(None, switches)))


_TED = (
    TedShape(1, (1, 1), 8, 4),
    TedShape(1, (4, 4), 37, 13),
    TedShape(3, (1, 1), 37, 13, branches="shared"),
    TedShape(3, (5, 9), 37, 13, branches="temporal"),
    TedShape(3, (5, 9), 37, 13, branches="difference"),
    TedShape(3, (3, 5), 37, 13, prefix=0),
    TedShape(3, (3, 5), 37, 13, prefix=0, branches="shared"),
    TedShape(3, (5, 3), 40, 19, strided=True),
    TedShape(8, (7, 7), 64, 32, sequential=True),
    TedShape(8, (7, 7), 64, 33, branches="shared", sequential=True),
    TedShape(8, (9, 5), 48, 24, prefix=0, strided=True, branches="shared"),
    TedShape(8, (5, 9), 40, 24, branches="temporal", patches_only=True),
    TedShape(3, (4, 4), 37, 13, patches_only=True),
    TedShape(3, (4, 5), 40, 24, prefix=5),
    TedShape(3, (5, 4), 37, 13, prefix=5, branches="shared", sequential=True, strided=True),
    TedShape(3, (4, 5), 40, 24, prefix=5, branches="temporal", patches_only=True),
    TedShape(8, (14, 14), 96, 64),
    TedShape(8, (16, 16), 64, 65, branches="shared"),
)


def _ted_inputs(shape: TedShape) -> Tensors:
    tokens, shared = shape.grid[0] * shape.grid[1] + shape.prefix, shape.branches == "shared"
    shapes: dict[str, tuple[int, ...]] = {"x": (shape.clips * shape.frames, tokens, shape.dim)}
    if shared:
        shapes |= _projections(shape.dim, shape.width, "shared.")
    for branch, taps in (("temporal", (1, 3)), ("difference", (1, 3, 3))):
        if shape.branches in ("both", "shared", branch):
            shapes |= {} if shared else _projections(shape.dim, shape.width, f"{branch}.")
            shapes |= {f"{branch}.conv_weight": (shape.width, *taps), f"{branch}.conv_bias": (shape.width,)}
    return _drawn(shapes, shape.strided)


def _run_ted(shape: TedShape, tensors: Tensors, backend: str) -> Tensor:
    shared = shape.branches == "shared"

    def branch(name: str) -> BranchWeights | None:
        if f"{name}.conv_weight" not in tensors:
            return None
        projections = "shared" if shared else name
        homes = {"conv_weight": name, "conv_bias": name}
        return BranchWeights(*(tensors[f"{homes.get(field, projections)}.{field}"] for field in BranchWeights._fields))

    weights = TEDWeights(branch("temporal"), branch("difference"), shared)
    return ted_adapter(
        tensors["x"],
        weights,
        shape.frames,
        grid=shape.grid,
        num_prefix_tokens=shape.prefix,
        patches_only=shape.patches_only,
        sequential=shape.sequential,
        backend=backend,
    )


def ted_case(shape: TedShape) -> Case:
    """Of ted_adapter."""
    temporal, difference = (shape.branches in ("both", "shared", name) for name in ("temporal", "difference"))
    switches = shape.branches == "shared", shape.prefix == 1, shape.patches_only, shape.sequential, shape.frames
    call = Call("ted_adapter", ted_layout(temporal, difference, *switches), shape.dim, shape.width, torch.float32)
    inputs, run = partial(_ted_inputs, shape), partial(_run_ted, shape)
    return Case("ted_adapter", str(shape), inputs, run, shape.strided, call=call)


def _run_bottleneck(activation: str, scale: float, residual: bool, tensors: Tensors, backend: str) -> Tensor:
    return bottleneck_adapter(*tensors.values(), activation=activation, scale=scale, residual=residual, backend=backend)


def bottleneck_case(
    activation: str, shape: tuple[int, ...], width: int, scale: float, residual: bool, strided: bool = False
) -> Case:
    """Of bottleneck_adapter."""
    switches = (f"scale {scale}", "residual" if residual else "no residual", "strided" if strided else "")
    return Case(
        "bottleneck_adapter",
        ", ".join((activation, f"{shape} to {width}", *filter(None, switches))),
        partial(_drawn, {"x": shape, **_projections(shape[-1], width)}, strided),
        partial(_run_bottleneck, activation, scale, residual),
        strided,
    )


def _bottleneck_cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        yield bottleneck_case(activation, (1, 8), 4, 1.0, True)
        yield bottleneck_case(activation, (5, 7, 37), 13, 0.5, True, strided=True)
        yield bottleneck_case(activation, (4, 50, 96), 48, 1.0, False)


def _run_gelu(activation: str, tensors: Tensors, backend: str) -> Tensor:
    return bias_gelu(tensors["h"], tensors["bias"], activation, backend=backend)


def gelu_case(activation: str, shape: tuple[int, ...], strided: bool = False) -> Case:
    """Of bias_gelu."""
    name = f"{activation}, {shape}{', strided' if strided else ''}"
    inputs = partial(_drawn, {"h": shape, "bias": shape[-1:]}, strided)
    return Case("bias_gelu", name, inputs, partial(_run_gelu, activation), strided)


def _gelu_cases() -> Iterator[Case]:
    for activation in GELUS:
        yield gelu_case(activation, (5, 7, 37), strided=True)
        yield gelu_case(activation, (70, 64))


class MstaShape(NamedTuple):
    sequences: int
    tokens: int
    dim: int
    width: int
    time: TimeLayout | None = None  # without one it is the text's
    after_up: bool = False
    strided: bool = False

    def __str__(self) -> str:
        reading = "text" if self.time is None else "after the up-projection" if self.after_up else "grouped"
        layout = "" if self.time is None else f"T={self.time.num_frames}{' joint' if self.time.joint else ''}"
        shape = f"({self.sequences}, {self.tokens}, {self.dim}) to {self.width}"
        return ", ".join(filter(None, (shape, reading, layout, "strided" if self.strided else "")))


_MSTA = (
    MstaShape(1, 1, 8, 4),
    MstaShape(5, 7, 37, 13, strided=True),
    *(
        MstaShape(*shape, time, after_up, strided)
        for after_up in (False, True)
        for shape, time, strided in (
            ((1, 1, 8, 4), TimeLayout(1), False),
            ((6, 5, 39, 13), TimeLayout(3), True),
            ((16, 10, 96, 16), TimeLayout(8), False),
            ((2, 13, 39, 13), TimeLayout(3, joint=True), False),
            ((2, 41, 64, 64), TimeLayout(8, joint=True), True),
        )
    ),
)


def _msta_inputs(shape: MstaShape) -> Tensors:
    dim, width, tokens = shape.dim, shape.width, (shape.sequences, shape.tokens, shape.dim)
    # The order decides the values. None of these is so near 0 before a ReLU that a rounding would open or close it.
    shapes: dict[str, tuple[int, ...]] = {
        "x": tokens,
        "base": tokens,
        "down_weight": (width, dim),
        "down_bias": (width,),
        "shared_weight": (width, width),
        "shared_bias": (width,),
        "up_weight": (dim, width),
        "up_bias": (dim,),
    }
    if shape.time is not None:
        shapes |= {"conv_weight": (dim, 1, 3), "conv_bias": (dim,)}
    return _drawn(shapes, shape.strided)


def _run_msta(shape: MstaShape, tensors: Tensors, backend: str) -> Tensor:
    fields: dict[str, Any] = {name: tensors[name] for name in MSTAWeights._fields if name in tensors}
    weights = MSTAWeights(**fields, after_up=shape.after_up)
    return msta_adapter(tensors["x"], tensors["base"], weights, shape.time, scale=0.5, backend=backend)


def msta_case(shape: MstaShape) -> Case:
    """Of msta_adapter."""
    return Case("msta_adapter", str(shape), partial(_msta_inputs, shape), partial(_run_msta, shape), shape.strided)


def _feature_inputs(rows: int, columns: int, dim: int, scale: float) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    v, w = _random(generator, rows, dim) * 3, _random(generator, columns, dim) * 0.3
    return {"v": v, "w": w, "logit_scale": torch.tensor(scale, dtype=torch.float64)}


def _run_cross_entropy(tensors: Tensors, backend: str) -> Tensor:
    v, w, scale = tensors.values()
    targets = torch.arange(v.shape[0], device=v.device) * 7 % w.shape[0]
    return cosine_cross_entropy(v, w, targets, scale, backend=backend)


def _run_soft_target(tensors: Tensors, backend: str) -> Tensor:
    v, w, scale = tensors.values()
    labels = torch.arange(v.shape[0], device=v.device) * 5 % 7
    return soft_target_kl(v, w, labels, scale, backend=backend)


def cross_entropy_case(rows: int, columns: int, dim: int, scale: float) -> Case:
    """Of cosine_cross_entropy."""
    inputs = partial(_feature_inputs, rows, columns, dim, scale)
    return Case("cosine_cross_entropy", f"B={rows}, C={columns}, D={dim}, scale {scale}", inputs, _run_cross_entropy)


def soft_target_case(rows: int, dim: int, scale: float) -> Case:
    """Of soft_target_kl."""
    inputs = partial(_feature_inputs, rows, rows, dim, scale)
    return Case("soft_target_kl", f"B={rows}, D={dim}, scale {scale}", inputs, _run_soft_target)


def _loss_cases() -> Iterator[Case]:
    for rows, columns, dim, scale in ((1, 2, 8, 10.0), (5, 7, 33, 14.3), (64, 400, 512, 100.0), (70, 129, 64, 14.3)):
        yield cross_entropy_case(rows, columns, dim, scale)
    for rows, dim, scale in ((2, 8, 10.0), (7, 33, 14.3), (64, 512, 100.0), (130, 64, 14.3)):
        yield soft_target_case(rows, dim, scale)


def _word_targets(hidden: Tensor, vocabulary: int) -> Tensor:
    places = torch.arange(hidden.shape[0] * hidden.shape[1], device=hidden.device).reshape(hidden.shape[:2])
    return torch.where(places % 3 == 1, places * 31 % vocabulary, IGNORE)


def _run_masked_word(tensors: Tensors, backend: str) -> Tensor:
    hidden, weight, bias = tensors.values()
    return masked_word_loss(hidden, weight, bias, _word_targets(hidden, weight.shape[0]))


def _masked_word_reference(tensors: Tensors, backend: str) -> Tensor:
    hidden, weight, bias = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors.values())
    targets = _word_targets(hidden, weight.shape[0]).flatten()
    return masked_word_reference(hidden.flatten(0, 1), weight, bias, targets) / (targets != IGNORE).sum()


def _masked_word_case(words: int, vocabulary: int, dim: int) -> Case:
    return Case(
        "masked_word_loss",
        f"{3 * words} words, V={vocabulary}, D={dim}",
        partial(_drawn, {"hidden": (3, words, dim), "weight": (vocabulary, dim), "bias": (vocabulary,)}),
        _run_masked_word,
        reference=_masked_word_reference,
    )
