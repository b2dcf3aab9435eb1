"""The adapters as PyTorch operators: registration with torch.library, shapes for compilers, autograd around them.

In eager mode the autograd functions call the backend directly; the dispatcher is taken only where somebody watches it
(torch.compile, torch.export, dispatch modes, tensor subclasses), which saves a good part of the cost of a small call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import native_bottleneck, native_ted
from .operands import Branches, Geometry

LIBRARY = torch.library.Library("m2clip", "FRAGMENT")

_TED = "Tensor[] temporal, Tensor[] difference, int num_frames, int[] grid, bool class_token, bool residual"
LIBRARY.define(f"ted_adapter(Tensor x, {_TED}, bool keep) -> (Tensor, Tensor)")
LIBRARY.define(f"ted_adapter_backward(Tensor dy, Tensor x, Tensor h, {_TED}, bool need_x, bool need_w) -> Tensor[]")
_BOTTLENECK = "Tensor[] weights, str activation, float scale, bool residual"
LIBRARY.define(f"bottleneck_adapter(Tensor x, {_BOTTLENECK}, bool keep) -> (Tensor, Tensor)")
LIBRARY.define(
    f"bottleneck_adapter_backward(Tensor dy, Tensor x, Tensor h, {_BOTTLENECK}, bool need_x, bool need_w) -> Tensor[]"
)


def watched(*tensors: Tensor) -> bool:
    """Whether a call has to go through the dispatcher: somebody traces, counts or fakes it."""
    return (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def _ted_forward(
    x: Tensor,
    temporal: list[Tensor],
    difference: list[Tensor],
    num_frames: int,
    grid: list[int],
    class_token: bool,
    residual: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(num_frames, (grid[0], grid[1]), class_token)
    return native_ted.forward(x, Branches(temporal, difference), geometry, residual, keep)


def _ted_backward(
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    temporal: list[Tensor],
    difference: list[Tensor],
    num_frames: int,
    grid: list[int],
    class_token: bool,
    residual: bool,
    need_x: bool,
    need_w: bool,
) -> list[Tensor]:
    geometry = Geometry(num_frames, (grid[0], grid[1]), class_token)
    branches = Branches(temporal, difference)
    dx, gradients = native_ted.backward(dy, x, h, branches, geometry, residual, need_x, need_w)
    return [dx, *gradients]


def _ted_forward_fake(
    x: Tensor, temporal: list[Tensor], difference: list[Tensor], *geometry: Any
) -> tuple[Tensor, Tensor]:
    columns = sum(part[0].shape[0] for part in Branches(temporal, difference).projections())
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((*x.shape[:2], columns) if geometry[-1] else (0,))


def _ted_backward_fake(
    dy: Tensor, x: Tensor, h: Tensor, temporal: list[Tensor], difference: list[Tensor], *geometry: Any
) -> list[Tensor]:
    need_x, need_w = geometry[-2:]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [dx, *(torch.empty_like(tensor) for tensor in (*temporal, *difference) if need_w)]


LIBRARY.impl("ted_adapter", _ted_forward, "CPU")
LIBRARY.impl("ted_adapter_backward", _ted_backward, "CPU")
torch.library.register_fake("m2clip::ted_adapter", _ted_forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::ted_adapter_backward", _ted_backward_fake, lib=LIBRARY)


class _TEDAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: Geometry, residual: bool, temporal: int, *weights: Tensor) -> Tensor:
        # `temporal`: how many of the weights are the temporal branch's.
        args = (list(weights[:temporal]), list(weights[temporal:]), geometry.num_frames, list(geometry.grid))
        run = torch.ops.m2clip.ted_adapter if watched(x, *weights) else _ted_forward
        y, h = run(x, *args, geometry.class_token, residual, True)
        ctx.save_for_backward(x, h, *weights)
        ctx.geometry, ctx.residual, ctx.temporal = geometry, residual, temporal
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, h, *weights = ctx.saved_tensors
        geometry = ctx.geometry
        args = (weights[: ctx.temporal], weights[ctx.temporal :], geometry.num_frames, list(geometry.grid))
        need_x, need_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[4:])
        run = torch.ops.m2clip.ted_adapter_backward if watched(dy, x, *weights) else _ted_backward
        dx, *gradients = run(dy, x, h, *args, geometry.class_token, ctx.residual, need_x, need_w)
        return (dx if need_x else None, None, None, None, *(gradients or [None] * len(weights)))


def ted_adapter(x: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> Tensor:
    """The operator with its gradient; without residual the branches' sum alone."""
    weights = [*branches.temporal, *branches.difference]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        return _TEDAdapter.apply(x, geometry, residual, len(branches.temporal), *weights)
    run = torch.ops.m2clip.ted_adapter if watched(x, *weights) else _ted_forward
    args = (geometry.num_frames, list(geometry.grid), geometry.class_token, residual, False)
    return run(x, branches.temporal, branches.difference, *args)[0]


def _bottleneck_backward(dy: Tensor, x: Tensor, h: Tensor, *options: Any) -> list[Tensor]:
    dx, gradients = native_bottleneck.backward(dy, x, h, *options)
    return [dx, *gradients]


def _bottleneck_forward_fake(x: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((x.shape[0], weights[0].shape[0]) if options[-1] else (0,))


def _bottleneck_backward_fake(dy: Tensor, x: Tensor, h: Tensor, weights: list[Tensor], *options: Any) -> list[Tensor]:
    need_x, need_w = options[-2:]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [dx, *(torch.empty_like(tensor) for tensor in weights if need_w)]


LIBRARY.impl("bottleneck_adapter", native_bottleneck.forward, "CPU")
LIBRARY.impl("bottleneck_adapter_backward", _bottleneck_backward, "CPU")
torch.library.register_fake("m2clip::bottleneck_adapter", _bottleneck_forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::bottleneck_adapter_backward", _bottleneck_backward_fake, lib=LIBRARY)


class _BottleneckAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, scale: float, residual: bool, *weights: Tensor) -> Tensor:
        run = torch.ops.m2clip.bottleneck_adapter if watched(x, *weights) else native_bottleneck.forward
        y, h = run(x, list(weights), activation, scale, residual, True)
        ctx.save_for_backward(x, h, *weights)
        ctx.options = (activation, scale, residual)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, h, *weights = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[4:])
        run = torch.ops.m2clip.bottleneck_adapter_backward if watched(dy, x, *weights) else _bottleneck_backward
        dx, *gradients = run(dy, x, h, weights, *ctx.options, need_x, need_w)
        return (dx if need_x else None, None, None, None, *(gradients or [None] * 4))


def bottleneck_adapter(x: Tensor, weights: list[Tensor], activation: str, scale: float, residual: bool) -> Tensor:
    """The operator on x (N, D) with its gradient; weights: down_weight, down_bias, up_weight, up_bias."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        return _BottleneckAdapter.apply(x, activation, scale, residual, *weights)
    run = torch.ops.m2clip.bottleneck_adapter if watched(x, *weights) else native_bottleneck.forward
    return run(x, weights, activation, scale, residual, False)[0]
