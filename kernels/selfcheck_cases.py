"""What `m2clip selfcheck` runs: every operation on shapes that exercise its branches, edges and odd widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .functional import IGNORE, bottleneck_adapter, cosine_cross_entropy, masked_word_loss, soft_target_kl, ted_adapter
from .gelu_ops import bias_gelu
from .msta_ops import msta_adapter
from .weights import BranchWeights, MSTAWeights, TEDWeights, TimeLayout

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

    def output_gradient(self, output: Tensor) -> Tensor:
        """The same values for every backend; 1 for a loss."""
        if output.dim() == 0:
            return torch.ones_like(output)
        values = _random(torch.Generator().manual_seed(1), *output.shape).to(output)
        return _strided(values) if self.strided else values


def all_cases() -> Iterator[Case]:
    """Every case, small ones of an operation first."""
    yield from _ted_cases()
    yield from _bottleneck_cases()
    yield from _gelu_cases()
    yield from _msta_cases()
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


class _Ted(NamedTuple):
    frames: int
    grid: tuple[int, int]
    dim: int
    width: int
    class_token: bool = True
    branches: str = "both"  # both, temporal, difference or shared
    sequential: bool = False
    strided: bool = False
    clips: int = 2
    patches_only: bool = False

    def __str__(self) -> str:
        switches = (
            "patches only" if self.patches_only else "class token" if self.class_token else "no class token",
            self.branches,
            "sequential" if self.sequential else "",
            "strided" if self.strided else "",
        )
        height, width = self.grid
        shape = f"T={self.frames}, {height}x{width}, D={self.dim}, R={self.width}"
        return ", ".join((shape, *filter(None, switches)))


_TED = (
    _Ted(1, (1, 1), 8, 4),
    _Ted(1, (4, 4), 37, 13),
    _Ted(3, (1, 1), 37, 13, branches="shared"),
    _Ted(3, (5, 9), 37, 13, branches="temporal"),
    _Ted(3, (5, 9), 37, 13, branches="difference"),
    _Ted(3, (3, 5), 37, 13, class_token=False),
    _Ted(3, (3, 5), 37, 13, class_token=False, branches="shared"),
    _Ted(3, (5, 3), 40, 19, strided=True),
    _Ted(8, (7, 7), 64, 32, sequential=True),
    _Ted(8, (7, 7), 64, 33, branches="shared", sequential=True),
    _Ted(8, (9, 5), 48, 24, class_token=False, strided=True, branches="shared"),
    _Ted(8, (5, 9), 40, 24, branches="temporal", patches_only=True),
    _Ted(3, (4, 4), 37, 13, patches_only=True),
    _Ted(8, (14, 14), 96, 64),
    _Ted(8, (16, 16), 64, 65, branches="shared"),
)


def _ted_inputs(shape: _Ted) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    tokens = shape.grid[0] * shape.grid[1] + shape.class_token
    x = _random(generator, shape.clips * shape.frames, tokens, shape.dim)
    tensors = {"x": _strided(x) if shape.strided else x}
    branches = {"both": ("temporal", "difference"), "shared": ("shared", "temporal", "difference")}
    for branch in branches.get(shape.branches, (shape.branches,)):
        if branch == "shared" or shape.branches != "shared":
            tensors[f"{branch}.down_weight"] = _random(generator, shape.width, shape.dim) * shape.dim**-0.5
            tensors[f"{branch}.down_bias"] = _random(generator, shape.width)
            tensors[f"{branch}.up_weight"] = _random(generator, shape.dim, shape.width) * shape.width**-0.5
            tensors[f"{branch}.up_bias"] = _random(generator, shape.dim)
        if branch != "shared":
            taps = (1, 3) if branch == "temporal" else (1, 3, 3)
            tensors[f"{branch}.conv_weight"] = _random(generator, shape.width, *taps) * 0.5
            tensors[f"{branch}.conv_bias"] = _random(generator, shape.width)
    return tensors


def _run_ted(shape: _Ted, tensors: Tensors, backend: str) -> Tensor:
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
        class_token=shape.class_token,
        patches_only=shape.patches_only,
        sequential=shape.sequential,
        backend=backend,
    )


def _ted_cases() -> Iterator[Case]:
    for shape in _TED:
        yield Case(
            "ted_adapter", str(shape), partial(_ted_inputs, shape), partial(_run_ted, shape), strided=shape.strided
        )


def _bottleneck_inputs(shape: tuple[int, ...], width: int, strided: bool) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    dim = shape[-1]
    x = _random(generator, *shape)
    return {
        "x": _strided(x) if strided else x,
        "down_weight": _random(generator, width, dim) * dim**-0.5,
        "down_bias": _random(generator, width),
        "up_weight": _random(generator, dim, width) * width**-0.5,
        "up_bias": _random(generator, dim),
    }


def _run_bottleneck(activation: str, scale: float, residual: bool, tensors: Tensors, backend: str) -> Tensor:
    return bottleneck_adapter(*tensors.values(), activation=activation, scale=scale, residual=residual, backend=backend)


def _bottleneck_cases() -> Iterator[Case]:
    for activation in reference.ACTIVATIONS:
        for shape, width, scale, residual, strided in (
            ((1, 8), 4, 1.0, True, False),
            ((5, 7, 37), 13, 0.5, True, True),
            ((4, 50, 96), 48, 1.0, False, False),
        ):
            switches = (f"scale {scale}", "residual" if residual else "no residual", "strided" if strided else "")
            yield Case(
                "bottleneck_adapter",
                ", ".join((activation, f"{shape} to {width}", *filter(None, switches))),
                partial(_bottleneck_inputs, shape, width, strided),
                partial(_run_bottleneck, activation, scale, residual),
                strided,
            )


def _gelu_inputs(shape: tuple[int, ...], strided: bool) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    h = _random(generator, *shape) * 2
    return {"h": _strided(h) if strided else h, "bias": _random(generator, shape[-1])}


def _run_gelu(activation: str, tensors: Tensors, backend: str) -> Tensor:
    return bias_gelu(tensors["h"], tensors["bias"], activation, backend=backend)


def _gelu_cases() -> Iterator[Case]:
    for activation in ("quick_gelu", "gelu"):
        for shape, strided in (((5, 7, 37), True), ((70, 64), False)):
            name = f"{activation}, {shape}{', strided' if strided else ''}"
            inputs, run = partial(_gelu_inputs, shape, strided), partial(_run_gelu, activation)
            yield Case("bias_gelu", name, inputs, run, strided)


class _Msta(NamedTuple):
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
    _Msta(1, 1, 8, 4),
    _Msta(5, 7, 37, 13, strided=True),
    *(
        _Msta(*shape, time, after_up, strided)
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


def _msta_inputs(shape: _Msta) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    dim, width = shape.dim, shape.width
    x, base = (_random(generator, shape.sequences, shape.tokens, dim) for _ in range(2))
    tensors = {
        "x": _strided(x) if shape.strided else x,
        "base": base,
        "down_weight": _random(generator, width, dim) * dim**-0.5,
        "down_bias": _random(generator, width),
        "shared_weight": _random(generator, width, width) * width**-0.5,
        "shared_bias": _random(generator, width),
        "up_weight": _random(generator, dim, width) * width**-0.5,
        "up_bias": _random(generator, dim),
    }
    if shape.time is not None:
        tensors |= {"conv_weight": _random(generator, dim, 1, 3) * 0.5, "conv_bias": _random(generator, dim)}
    return tensors


def _run_msta(shape: _Msta, tensors: Tensors, backend: str) -> Tensor:
    fields: dict[str, Any] = {name: tensors[name] for name in MSTAWeights._fields if name in tensors}
    weights = MSTAWeights(**fields, after_up=shape.after_up)
    return msta_adapter(tensors["x"], tensors["base"], weights, shape.time, scale=0.5, backend=backend)


def _msta_cases() -> Iterator[Case]:
    for shape in _MSTA:
        run = partial(_run_msta, shape)
        yield Case("msta_adapter", str(shape), partial(_msta_inputs, shape), run, strided=shape.strided)


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


def _loss_cases() -> Iterator[Case]:
    for rows, columns, dim, scale in ((1, 2, 8, 10.0), (5, 7, 33, 14.3), (64, 400, 512, 100.0), (70, 129, 64, 14.3)):
        inputs = partial(_feature_inputs, rows, columns, dim, scale)
        name = f"B={rows}, C={columns}, D={dim}, scale {scale}"
        yield Case("cosine_cross_entropy", name, inputs, _run_cross_entropy)
    for rows, dim, scale in ((2, 8, 10.0), (7, 33, 14.3), (64, 512, 100.0), (130, 64, 14.3)):
        inputs = partial(_feature_inputs, rows, rows, dim, scale)
        yield Case("soft_target_kl", f"B={rows}, D={dim}, scale {scale}", inputs, _run_soft_target)


def _masked_word_inputs(words: int, vocabulary: int, dim: int) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": _random(generator, 3, words, dim),
        "weight": _random(generator, vocabulary, dim) * dim**-0.5,
        "bias": _random(generator, vocabulary),
    }


def _word_targets(hidden: Tensor, vocabulary: int) -> Tensor:
    places = torch.arange(hidden.shape[0] * hidden.shape[1], device=hidden.device).reshape(hidden.shape[:2])
    return torch.where(places % 3 == 1, places * 31 % vocabulary, IGNORE)


def _run_masked_word(tensors: Tensors, backend: str) -> Tensor:
    hidden, weight, bias = tensors.values()
    return masked_word_loss(hidden, weight, bias, _word_targets(hidden, weight.shape[0]))


def _masked_word_reference(tensors: Tensors, backend: str) -> Tensor:
    hidden, weight, bias = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors.values())
    targets = _word_targets(hidden, weight.shape[0]).flatten()
    return reference.masked_word_loss(hidden.flatten(0, 1), weight, bias, targets) / (targets != IGNORE).sum()


def _masked_word_case(words: int, vocabulary: int, dim: int) -> Case:
    return Case(
        "masked_word_loss",
        f"{3 * words} words, V={vocabulary}, D={dim}",
        partial(_masked_word_inputs, words, vocabulary, dim),
        _run_masked_word,
        reference=_masked_word_reference,
    )
