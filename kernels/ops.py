"""The adapters as PyTorch operators: registration with torch.library, shapes for compilers, gradients.

There are two ways to the same backend. Where somebody watches the dispatcher (torch.compile, torch.export, dispatch
modes, tensor subclasses) an operator with a registered gradient is called. In plain eager mode an autograd function
calls the backend directly, which saves a good part of the cost of a small call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from .implementations import implementation
from .operands import Branches, Geometry

LIBRARY = torch.library.Library("m2clip", "FRAGMENT")

_TED = (
    "Tensor[] temporal, Tensor[] difference, int num_frames, int[] grid, bool class_token, bool patches_only, "
    "bool residual, str backend"
)
LIBRARY.define(f"ted_adapter(Tensor x, {_TED}, bool keep) -> (Tensor, Tensor)")
LIBRARY.define(f"ted_adapter_backward(Tensor dy, Tensor x, Tensor h, {_TED}, bool need_x, bool need_w) -> Tensor[]")
_BOTTLENECK = "Tensor[] weights, str activation, float scale, bool residual, str backend"
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


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current GPU, which on a machine with several need not be the tensors' own."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _ted_forward(x: Tensor, temporal: list[Tensor], difference: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    num_frames, grid, class_token, patches_only, residual, backend, keep = options
    geometry = Geometry(num_frames, (grid[0], grid[1]), class_token, patches_only)
    with on_device_of(x):
        run = implementation("ted_adapter", backend)
        return run.forward(x, Branches(temporal, difference), geometry, residual, keep)


def _ted_backward(
    dy: Tensor, x: Tensor, h: Tensor, temporal: list[Tensor], difference: list[Tensor], *options: Any
) -> list[Tensor]:
    num_frames, grid, class_token, patches_only, residual, backend, need_x, need_w = options
    geometry = Geometry(num_frames, (grid[0], grid[1]), class_token, patches_only)
    branches = Branches(temporal, difference)
    with on_device_of(x):
        run = implementation("ted_adapter", backend)
        dx, gradients = run.backward(dy, x, h, branches, geometry, residual, need_x, need_w)
    return [dx, *gradients]


def _ted_forward_fake(
    x: Tensor, temporal: list[Tensor], difference: list[Tensor], *geometry: Any
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(Branches(temporal, difference).hidden_shape(x) if geometry[-1] else (0,))


def _ted_backward_fake(
    dy: Tensor, x: Tensor, h: Tensor, temporal: list[Tensor], difference: list[Tensor], *geometry: Any
) -> list[Tensor]:
    need_x, need_w = geometry[-2:]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [dx, *(torch.empty_like(tensor) for tensor in (*temporal, *difference) if need_w)]


# Shapes instead of tensors come in. As with torch's own operators, products and convolutions are counted.
@register_flop_formula(torch.ops.m2clip.ted_adapter)
def _ted_flops(x: Any, temporal: Any, difference: Any, *options: Any, **_: Any) -> int:
    columns = sum(part[0][0] for part in Branches(temporal, difference).projections())
    return 4 * x[0] * x[1] * x[2] * columns + _spatial_flops(x, difference, options)


@register_flop_formula(torch.ops.m2clip.ted_adapter_backward)
def _ted_backward_flops(dy: Any, x: Any, h: Any, temporal: Any, difference: Any, *options: Any, **_: Any) -> int:
    need_x, need_w = options[-2:]
    columns = sum(part[0][0] for part in Branches(temporal, difference).projections())
    spatial = _spatial_flops(x, difference, options) * (1 + 2 * need_w)  # dh; u once more and the weights' gradient
    return 2 * x[0] * x[1] * x[2] * columns * (1 + need_x + 2 * need_w) + spatial


def _spatial_flops(x: Any, difference: Any, options: Any) -> int:
    if not difference:
        return 0
    class_token, width = options[2], difference[-1][0] if len(difference) == 2 else difference[0][0]
    return 18 * x[0] * (x[1] - class_token) * width


def implement(name: str, run: Callable[..., Any]) -> None:
    """Register what computes an operator, on all kinds of devices."""
    for device in ("CPU", "CUDA"):
        # Products write into given memory, which autograd's bookkeeping forbids even where nothing is recorded.
        LIBRARY.impl(name, torch.no_grad()(run), device)


implement("ted_adapter", _ted_forward)
implement("ted_adapter_backward", _ted_backward)
torch.library.register_fake("m2clip::ted_adapter", _ted_forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::ted_adapter_backward", _ted_backward_fake, lib=LIBRARY)


def _ted_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, temporal, difference, *ctx.options, keep = inputs
    ctx.save_for_backward(x, output[1], *temporal, *difference)
    ctx.temporal, ctx.keep = len(temporal), keep


def _ted_gradient(ctx: Any, dy: Tensor, dh: Tensor) -> Any:
    x, h, *weights = ctx.saved_tensors
    temporal, difference = weights[: ctx.temporal], weights[ctx.temporal :]
    if not ctx.keep:  # called for inference, and differentiated after all
        h = torch.ops.m2clip.ted_adapter(x, temporal, difference, *ctx.options, True)[1]
    need_x, *need_lists = ctx.needs_input_grad[:3]
    need_w = any(need_lists[0]) or any(need_lists[1])
    run = torch.ops.m2clip.ted_adapter_backward
    dx, *gradients = run(dy, x, h, temporal, difference, *ctx.options, need_x, need_w)
    lists = gradients or [None] * len(weights)
    return dx if need_x else None, lists[: ctx.temporal], lists[ctx.temporal :], *[None] * 7


torch.library.register_autograd("m2clip::ted_adapter", _ted_gradient, setup_context=_ted_context, lib=LIBRARY)


class _TEDAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branches_of: int, geometry: tuple[Any, ...], *weights: Tensor) -> Tensor:
        # branches_of: how many of the weights are the temporal branch's; geometry: the operator's other arguments.
        y, h = _ted_forward(x, list(weights[:branches_of]), list(weights[branches_of:]), *geometry, True)
        ctx.save_for_backward(x, h, *weights)
        ctx.branches_of, ctx.geometry = branches_of, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, h, *weights = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[3:])
        branches = (weights[: ctx.branches_of], weights[ctx.branches_of :])
        dx, *gradients = _ted_backward(dy, x, h, *branches, *ctx.geometry, need_x, need_w)
        return (dx if need_x else None, None, None, *(gradients or (None,) * len(weights)))


def ted_adapter(x: Tensor, branches: Branches, geometry: Geometry, residual: bool, backend: str) -> Tensor:
    """The operator with its gradient; without residual the branches' sum alone."""
    weights = [*branches.temporal, *branches.difference]
    num_frames, grid, *switches = geometry
    options = (num_frames, list(grid), *switches, residual, backend)
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    if watched(x, *weights):
        return torch.ops.m2clip.ted_adapter(x, *branches, *options, train)[0]
    if train:
        return _TEDAdapter.apply(x, len(branches.temporal), options, *weights)
    return _ted_forward(x, *branches, *options, False)[0]


def _bottleneck_forward(x: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    *setting, backend, keep = options
    with on_device_of(x):
        return implementation("bottleneck_adapter", backend).forward(x, weights, *setting, keep)


def _bottleneck_backward(dy: Tensor, x: Tensor, h: Tensor, weights: list[Tensor], *options: Any) -> list[Tensor]:
    *setting, backend, need_x, need_w = options
    with on_device_of(x):
        run = implementation("bottleneck_adapter", backend)
        dx, gradients = run.backward(dy, x, h, weights, *setting, need_x, need_w)
    return [dx, *gradients]


def _bottleneck_forward_fake(x: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((x.shape[0], weights[0].shape[0]) if options[-1] else (0,))


def _bottleneck_backward_fake(dy: Tensor, x: Tensor, h: Tensor, weights: list[Tensor], *options: Any) -> list[Tensor]:
    need_x, need_w = options[-2:]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [dx, *(torch.empty_like(tensor) for tensor in weights if need_w)]


@register_flop_formula(torch.ops.m2clip.bottleneck_adapter)
def _bottleneck_flops(x: Any, weights: Any, *options: Any, **_: Any) -> int:
    return 4 * x[0] * x[1] * weights[0][0]


@register_flop_formula(torch.ops.m2clip.bottleneck_adapter_backward)
def _bottleneck_backward_flops(dy: Any, x: Any, h: Any, weights: Any, *options: Any, **_: Any) -> int:
    need_x, need_w = options[-2:]
    return 2 * x[0] * x[1] * weights[0][0] * (1 + need_x + 2 * need_w)


implement("bottleneck_adapter", _bottleneck_forward)
implement("bottleneck_adapter_backward", _bottleneck_backward)
torch.library.register_fake("m2clip::bottleneck_adapter", _bottleneck_forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::bottleneck_adapter_backward", _bottleneck_backward_fake, lib=LIBRARY)


def _bottleneck_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, *ctx.options, ctx.keep = inputs
    ctx.save_for_backward(x, output[1], *weights)


def _bottleneck_gradient(ctx: Any, dy: Tensor, dh: Tensor) -> Any:
    x, h, *weights = ctx.saved_tensors
    if not ctx.keep:
        h = torch.ops.m2clip.bottleneck_adapter(x, weights, *ctx.options, True)[1]
    need_x, need_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
    run = torch.ops.m2clip.bottleneck_adapter_backward
    dx, *gradients = run(dy, x, h, weights, *ctx.options, need_x, need_w)
    return dx if need_x else None, gradients or [None] * 4, *[None] * 5


torch.library.register_autograd(
    "m2clip::bottleneck_adapter", _bottleneck_gradient, setup_context=_bottleneck_context, lib=LIBRARY
)


class _BottleneckAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...], *weights: Tensor) -> Tensor:
        y, h = _bottleneck_forward(x, list(weights), *options, True)
        ctx.save_for_backward(x, h, *weights)
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, h, *weights = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:])
        dx, *gradients = _bottleneck_backward(dy, x, h, list(weights), *ctx.options, need_x, need_w)
        return (dx if need_x else None, None, *(gradients or (None,) * 4))


def bottleneck_adapter(
    x: Tensor, weights: list[Tensor], activation: str, scale: float, residual: bool, backend: str
) -> Tensor:
    """The operator on x (N, D) with its gradient; weights: down_weight, down_bias, up_weight, up_bias."""
    options = (activation, scale, residual, backend)
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    if watched(x, *weights):
        return torch.ops.m2clip.bottleneck_adapter(x, weights, *options, train)[0]
    if train:
        return _BottleneckAdapter.apply(x, options, *weights)
    return _bottleneck_forward(x, weights, *options, False)[0]
