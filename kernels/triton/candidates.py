"""What can be measured on the Triton backend: each kernel with its configurations and a launch to time.

Inputs are random and of the size of a training batch. What is measured is kept by the arguments of the static rule, so
that it holds at every batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..operands import Branches, MSTAWeights, TimeLayout
from ..tuning.candidates import KernelCandidates, Shape, adapter_inputs
from . import bottleneck, gelu, losses, mixer, msta, one_pass, projection, ted
from .device import architecture

FEATURES, SCALE = 512, 100.0  # of the losses


def kernel_candidates(shape: Shape, device: torch.device) -> Iterator[KernelCandidates]:
    """Every kernel that the operations launch on a shape; plans come last, timed with the tiles found before."""
    random = partial(torch.randn, device=device, dtype=shape.dtype)
    yield from _adapter(shape, device, random)
    yield from _msta(shape, device, random)
    yield from _others(shape, device, random)


def _candidates(
    kernel: str, candidates: Callable[..., list[Any]], question: tuple[Any, ...], run: Callable[[Any], object]
) -> KernelCandidates:
    """The first of a kernel's candidates is the static rule's."""
    rule, *others = candidates(*question)
    return KernelCandidates(kernel, question, rule, others, run)


def _adapter(shape: Shape, device: torch.device, random: Callable[..., Tensor]) -> Iterator[KernelCandidates]:
    """Of ted_adapter with separate projections."""
    dim, width, dtype = shape.dim, shape.width, shape.dtype
    frames, capability = shape.clips * shape.frames, architecture(device)
    x, branches, geometry = adapter_inputs(shape, device)
    rows = [random(frames, shape.tokens, width) for _ in range(4)]
    parts = {"temporal": Branches(branches.temporal, []), "difference": Branches([], branches.difference)}
    parts["shared"] = Branches(branches.temporal, branches.difference[2:4])
    for (branch, part), backward in product(parts.items(), (False, True)):
        question = width, dtype.itemsize, branch, backward
        run: Callable[[Any], object] = partial(_mix, mixer.Mixer.of(part, geometry), rows, backward)
        yield _candidates("mixer", mixer.mixer_candidates, question, run)
    for columns, depth in dict.fromkeys(((dim, 2 * width), (2 * width, dim))):
        a, b = random(frames, shape.tokens, depth), random(depth, columns)
        run = partial(_project, a, b, random(frames, shape.tokens, columns))
        yield _candidates("projection", projection.projection_candidates, (columns, depth, dtype, capability), run)
    inputs, plans = (x, branches, geometry, True), ted.plans(branches, geometry, dtype)
    if "narrow" in plans:
        run = partial(one_pass.forward_narrow, *inputs)
        yield _candidates("one_pass_narrow", one_pass.narrow_candidates, (width, 2 * width, dtype, capability), run)
    if "wide" in plans:
        run = partial(one_pass.forward_wide, *inputs)
        yield _candidates("one_pass_wide", one_pass.wide_candidates, (width, dtype, capability), run)
    rule, *others = map(ted.Plan, plans)
    asked = ted.plan_question(branches, dtype, capability)
    yield KernelCandidates("ted_adapter_plan", asked, rule, others, lambda plan: ted.forward(*inputs, False, plan.name))


def _msta(shape: Shape, device: torch.device, random: Callable[..., Tensor]) -> Iterator[KernelCandidates]:
    """Of msta_adapter on frames that are sequences of their own, with its convolution beside and after the
    up-projection."""
    dim, width, dtype, capability = shape.dim, shape.width, shape.dtype, architecture(device)
    frames = shape.clips * shape.frames
    x, base, slope = (random(frames, shape.tokens, dim) for _ in range(3))
    h = random(frames, shape.tokens, width)
    down, shared, up = random(width, dim) * dim**-0.5, random(width, width) * width**-0.5, random(dim, width)
    bias, conv = random(width), (random(dim, 1, 3), random(dim))
    weights = MSTAWeights(down, bias, shared, bias, up * width**-0.5, random(dim), *conv)
    after_up, rows = weights._replace(after_up=True), msta.Rows.of(x, TimeLayout(shape.frames))
    for a, weight in ((x, down), (h, shared)):
        run: Callable[[Any], object] = partial(msta.projected, a, weight, bias)
        question = (*weight.shape, dtype, capability)
        yield _candidates("projection", projection.projection_candidates, question, run)
    if dim % width == 0:
        run = partial(msta.up_beside_convolution, h, base, weights, rows, 1.0)
        yield _candidates("msta_up", msta.up_candidates, (dim, width, dtype, capability), run)
    if dim % width == 0 and dim > width:
        run = partial(msta.transposed_convolution, slope, h, weights, rows, torch.empty_like(h), True)
        yield _candidates("msta_time", msta.time_candidates, (dim // width, dtype, capability), run)
    run = partial(_convolve_after_up, x, base, slope, after_up, rows)
    yield _candidates("msta_time", msta.time_candidates, (1, dtype, capability), run)


def _convolve_after_up(
    u: Tensor, base: Tensor, dy: Tensor, weights: MSTAWeights, rows: msta.Rows, config: msta.TimeConfig
) -> None:
    """Forward and backward, which share their tile."""
    msta.convolved(u, base, weights, rows, 1.0, config)
    msta.transposed_convolution(dy, u, weights, rows, torch.empty_like(dy), True, config)


def _others(shape: Shape, device: torch.device, random: Callable[..., Tensor]) -> Iterator[KernelCandidates]:
    dim, width, dtype = shape.dim, shape.width, shape.dtype
    rows, capability = shape.clips * shape.frames * shape.tokens, architecture(device)
    weights = [random(width, dim) * dim**-0.5, random(width), random(dim, width) * width**-0.5, random(dim)]
    run: Callable[[Any], object] = partial(bottleneck.forward, random(rows, dim), weights, "gelu", 1.0, True, True)
    yield _candidates("bottleneck", bottleneck.bottleneck_candidates, (width, dtype, capability), run)
    run = partial(gelu.forward, random(rows, 4 * dim), random(4 * dim), "quick_gelu")
    yield _candidates("bias_gelu", gelu.gelu_candidates, (4 * dim, dtype.itemsize), run)
    for columns in dict.fromkeys((shape.classes, 2 * losses.MANY)):
        yield from _loss(shape, device, random, columns)


def _loss(
    shape: Shape, device: torch.device, random: Callable[..., Tensor], columns: int
) -> Iterator[KernelCandidates]:
    v, w = random(2 * shape.clips, FEATURES), random(columns, FEATURES)
    targets = torch.arange(len(v), device=device) % columns
    scale, slope = torch.tensor(SCALE, device=device), torch.ones((), device=device)
    asked = losses.question(v, columns)
    yield _candidates("loss", losses.loss_candidates, asked, partial(losses.cosine_cross_entropy, v, w, targets, scale))
    saved = losses.cosine_cross_entropy(v, w, targets, scale)[1]
    run = partial(losses.cosine_cross_entropy_backward, slope, v, w, saved, targets, scale, True, True)
    yield _candidates("loss_gradient", losses.gradient_candidates, asked, run)


def _mix(kernel: mixer.Mixer, rows: list[Tensor], backward: bool, config: mixer.MixerConfig) -> None:
    h, du, dh, u = rows
    if backward:
        kernel.backward(h, du, dh, u, True, config)
    else:
        kernel.forward(h, u, config)


def _project(a: Tensor, b: Tensor, residual: Tensor, config: projection.ProjectionConfig) -> None:
    projection.project(a, b, residual, None, False, 1.0, config)
