"""What can be tuned on the Triton backend: each kernel with its static rule, its candidates and a launch to time.

Inputs are random and of the size of a training batch. What is measured is kept by the arguments of the static rule, so
that it holds at every batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operands import Branches, Geometry
from ..tuner import Problem, Tunable
from ..weights import MSTAWeights, TimeLayout
from . import bottleneck, gelu, losses, mixer, msta, one_pass, projection, ted
from .device import architecture

FEATURES, SCALE = 512, 100.0  # of the losses


def tunables(problem: Problem, device: torch.device) -> Iterator[Tunable]:
    """Every kernel that the operations of a problem launch; plans come last, timed with the tiles found before."""
    random = partial(torch.randn, device=device, dtype=problem.dtype)
    yield from _adapter(problem, device, random)
    yield from _msta(problem, device, random)
    yield from _others(problem, device, random)


def _tunable(
    kernel: str, candidates: Callable[..., list[Any]], question: tuple[Any, ...], run: Callable[[Any], object]
) -> Tunable:
    """The first of a kernel's candidates is the static rule's."""
    rule, *others = candidates(*question)
    return Tunable(kernel, question, rule, others, run)


def _adapter(problem: Problem, device: torch.device, random: Callable[..., Tensor]) -> Iterator[Tunable]:
    """Of ted_adapter with separate projections."""
    dim, width, dtype = problem.dim, problem.width, problem.dtype
    frames, capability = problem.clips * problem.frames, architecture(device)
    branches = Branches(*(_branch(random, dim, width, taps) for taps in ((1, 3), (1, 3, 3))))
    geometry = Geometry(problem.frames, problem.grid, True)
    x = random(frames, problem.tokens, dim)
    h, u, dh = (random(frames, problem.tokens, 2 * width) for _ in range(3))
    kernel = mixer.Mixer.of(branches, geometry)
    for backward in (False, True):
        question = width, dtype.itemsize, backward
        yield _tunable("mixer", mixer.mixer_candidates, question, partial(_mix, kernel, h, u, dh, backward))
    for columns, depth in dict.fromkeys(((dim, 2 * width), (2 * width, dim))):
        a, b = random(frames, problem.tokens, depth), random(depth, columns)
        run: Callable[[Any], object] = partial(_project, a, b, random(frames, problem.tokens, columns))
        yield _tunable("projection", projection.projection_candidates, (columns, depth, dtype, capability), run)
    inputs = x, branches, geometry, True
    if 2 * width <= one_pass.WIDEST_NARROW:
        run = partial(one_pass.forward_narrow, *inputs)
        yield _tunable("one_pass_narrow", one_pass.narrow_candidates, (width, 2 * width, dtype, capability), run)
    run = partial(one_pass.forward_wide, *inputs)
    yield _tunable("one_pass_wide", one_pass.wide_candidates, (width, dtype, capability), run)
    rule, *others = (ted.Plan(name) for name in ted.plans(branches, geometry, dtype))
    asked = ted.plan_question(branches, dtype, capability)
    yield Tunable("ted_adapter_plan", asked, rule, others, lambda plan: ted.forward(*inputs, False, plan.name))


def _msta(problem: Problem, device: torch.device, random: Callable[..., Tensor]) -> Iterator[Tunable]:
    """Of msta_adapter on frames that are sequences of their own, with its convolution beside and after the
    up-projection."""
    dim, width, dtype, capability = problem.dim, problem.width, problem.dtype, architecture(device)
    frames = problem.clips * problem.frames
    x, base, slope = (random(frames, problem.tokens, dim) for _ in range(3))
    h = random(frames, problem.tokens, width)
    down, shared, up = random(width, dim) * dim**-0.5, random(width, width) * width**-0.5, random(dim, width)
    bias, conv = random(width), (random(dim, 1, 3), random(dim))
    weights = MSTAWeights(down, bias, shared, bias, up * width**-0.5, random(dim), *conv)
    after_up, rows = weights._replace(after_up=True), msta.Rows.of(x, TimeLayout(problem.frames))
    for a, weight in ((x, down), (h, shared)):
        run: Callable[[Any], object] = partial(msta.projected, a, weight, bias)
        question = (*weight.shape, dtype, capability)
        yield _tunable("projection", projection.projection_candidates, question, run)
    if dim % width == 0:
        run = partial(msta.up_beside_convolution, h, base, weights, rows, 1.0)
        yield _tunable("msta_up", msta.up_candidates, (dim, width, dtype, capability), run)
    if dim % width == 0 and dim > width:
        run = partial(msta.transposed_convolution, slope, h, weights, rows, torch.empty_like(h), True)
        yield _tunable("msta_time", msta.time_candidates, (dim // width, dtype, capability), run)
    run = partial(_convolve_after_up, x, base, slope, after_up, rows)
    yield _tunable("msta_time", msta.time_candidates, (1, dtype, capability), run)


def _convolve_after_up(
    u: Tensor, base: Tensor, dy: Tensor, weights: MSTAWeights, rows: msta.Rows, config: msta.TimeConfig
) -> None:
    """Forward and backward, which share their tile."""
    msta.convolved(u, base, weights, rows, 1.0, config)
    msta.transposed_convolution(dy, u, weights, rows, torch.empty_like(dy), True, config)


def _others(problem: Problem, device: torch.device, random: Callable[..., Tensor]) -> Iterator[Tunable]:
    dim, width, dtype = problem.dim, problem.width, problem.dtype
    rows, capability = problem.clips * problem.frames * problem.tokens, architecture(device)
    weights = [random(width, dim) * dim**-0.5, random(width), random(dim, width) * width**-0.5, random(dim)]
    run: Callable[[Any], object] = partial(bottleneck.forward, random(rows, dim), weights, "gelu", 1.0, True, True)
    yield _tunable("bottleneck", bottleneck.bottleneck_candidates, (width, dtype, capability), run)
    run = partial(gelu.forward, random(rows, 4 * dim), random(4 * dim), "quick_gelu")
    yield _tunable("bias_gelu", gelu.gelu_candidates, (4 * dim, dtype.itemsize), run)
    for columns in dict.fromkeys((problem.classes, 2 * losses.MANY)):
        yield from _loss(problem, device, random, columns)


def _loss(problem: Problem, device: torch.device, random: Callable[..., Tensor], columns: int) -> Iterator[Tunable]:
    v, w = random(2 * problem.clips, FEATURES), random(columns, FEATURES)
    targets = torch.arange(len(v), device=device) % columns
    scale, slope = torch.tensor(SCALE, device=device), torch.ones((), device=device)
    asked = losses.question(v, columns)
    yield _tunable("loss", losses.loss_candidates, asked, partial(losses.cosine_cross_entropy, v, w, targets, scale))
    saved = losses.cosine_cross_entropy(v, w, targets, scale)[1]
    run = partial(losses.cosine_cross_entropy_backward, slope, v, w, saved, targets, scale, True, True)
    yield _tunable("loss_gradient", losses.gradient_candidates, asked, run)


def _branch(random: Callable[..., Tensor], dim: int, width: int, taps: tuple[int, ...]) -> list[Tensor]:
    down, up = random(width, dim) * dim**-0.5, random(dim, width) * width**-0.5
    return [down, random(width), random(width, *taps), random(width), up, random(dim)]


def _mix(kernel: mixer.Mixer, h: Tensor, u: Tensor, dh: Tensor, backward: bool, config: mixer.MixerConfig) -> None:
    if backward:
        kernel.backward(h, u, dh, True, config)
    else:
        kernel.forward(h, u, config)


def _project(a: Tensor, b: Tensor, residual: Tensor, config: projection.ProjectionConfig) -> None:
    projection.project(a, b, residual, None, False, 1.0, config)
