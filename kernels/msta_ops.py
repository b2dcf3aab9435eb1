"""msta_adapter as a PyTorch operator; ops.py says how operators are bound."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from . import dispatch, reference
from .implementations import implementation
from .ops import LIBRARY, implement, on_device_of, watched
from .weights import MSTAWeights, TimeLayout

_OPTIONS = "Tensor[] weights, int num_frames, bool joint, bool after_up, float scale, str backend"
LIBRARY.define(f"msta_adapter(Tensor x, Tensor base, {_OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"msta_adapter_backward(Tensor dy, Tensor x, Tensor first, Tensor second, {_OPTIONS}, bool need_x, bool need_w) "
    "-> Tensor[]"
)


def _setting(
    weights: list[Tensor], num_frames: int, joint: bool, after_up: bool
) -> tuple[MSTAWeights, TimeLayout | None]:
    return _weights(weights, after_up), TimeLayout(num_frames, joint) if num_frames else None


def _weights(tensors: Iterable[Tensor], after_up: bool) -> MSTAWeights:
    """The weights of six tensors, or of eight."""
    fields: dict[str, Any] = dict(zip(MSTAWeights._fields, tensors, strict=False))
    return MSTAWeights(**fields, after_up=after_up)


def _forward(x: Tensor, base: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *layout, scale, backend, keep = options
    with on_device_of(x):
        return implementation("msta_adapter", backend).forward(x, base, *_setting(weights, *layout), scale, keep)


def _backward(
    dy: Tensor, x: Tensor, first: Tensor, second: Tensor, weights: list[Tensor], *options: Any
) -> list[Tensor]:
    *layout, scale, backend, need_x, need_w = options
    with on_device_of(x):
        run = implementation("msta_adapter", backend)
        setting = _setting(weights, *layout)
        dx, gradients = run.backward(dy.to(x.dtype), x, first, second, *setting, scale, need_x, need_w)
    return [dx, *gradients]


def _forward_fake(x: Tensor, base: Tensor, weights: list[Tensor], *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*x.shape[:2], weights[0].shape[0]) if options[-1] else (0,)
    return torch.empty_like(base, memory_format=torch.contiguous_format), x.new_empty(shape), x.new_empty(shape)


def _backward_fake(
    dy: Tensor, x: Tensor, first: Tensor, second: Tensor, weights: list[Tensor], *options: Any
) -> list[Tensor]:
    need_x, need_w = options[-2:]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [dx, *(torch.empty_like(tensor) for tensor in weights if need_w)]


def _products(x: Any, weights: Any) -> int:
    (width, dim), rows = weights[0], x[0] * x[1]
    return 2 * rows * width * (2 * dim + width)


@register_flop_formula(torch.ops.m2clip.msta_adapter)
def _flops(x: Any, base: Any, weights: Any, *options: Any, **_: Any) -> int:
    return _products(x, weights)


@register_flop_formula(torch.ops.m2clip.msta_adapter_backward)
def _backward_flops(dy: Any, x: Any, first: Any, second: Any, weights: Any, *options: Any, **_: Any) -> int:
    need_x, need_w = options[-2:]
    width, dim = weights[0]
    return _products(x, weights) * (1 + need_w) - (not need_x) * 2 * x[0] * x[1] * width * dim


implement("msta_adapter", _forward)
implement("msta_adapter_backward", _backward)
torch.library.register_fake("m2clip::msta_adapter", _forward_fake, lib=LIBRARY)
torch.library.register_fake("m2clip::msta_adapter_backward", _backward_fake, lib=LIBRARY)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, base, weights, *ctx.options, ctx.keep = inputs
    ctx.save_for_backward(x, *output[1:], *weights)


def _gradient(ctx: Any, dy: Tensor, *unused: Tensor) -> Any:
    x, first, second, *weights = ctx.saved_tensors
    if not ctx.keep:  # called for inference, and differentiated after all
        first, second = torch.ops.m2clip.msta_adapter(x, dy, weights, *ctx.options, True)[1:]
    need_x, need_base, need_lists = ctx.needs_input_grad[:3]
    run = torch.ops.m2clip.msta_adapter_backward
    dx, *gradients = run(dy, x, first, second, weights, *ctx.options, need_x, any(need_lists))
    return (
        dx if need_x else None,
        dy if need_base else None,
        gradients or [None] * len(weights),
        *[None] * (len(ctx.options) + 1),
    )


torch.library.register_autograd("m2clip::msta_adapter", _gradient, setup_context=_context, lib=LIBRARY)


class _MSTAAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, options: tuple[Any, ...], *weights: Tensor) -> Tensor:
        output = _forward(x, base, list(weights), *options, True)
        _context(ctx, (x, base, weights, *options, True), output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, first, second, *weights = ctx.saved_tensors
        need_x, need_base, _, *need_weights = ctx.needs_input_grad
        dx, *gradients = _backward(dy, x, first, second, weights, *ctx.options, need_x, any(need_weights))
        return (
            dx if need_x else None,
            dy if need_base else None,
            None,
            *(gradients or (None,) * len(weights)),
        )


def msta_adapter(
    x: Tensor,
    base: Tensor,
    weights: MSTAWeights,
    time: TimeLayout | None = None,
    *,
    scale: float = 0.005,
    backend: str = "auto",
) -> Tensor:
    """MSTA's adapter, added to a stream: ``base + scale * A(x)``.

    ``h = ReLU(ReLU(x W + b) W_s + b_s)``; ``A = h V + a`` for text (no time), and for video ``A = h V + a + conv(h)``
    with a convolution over frames of kernel 3 that widens the bottleneck (each hidden channel feeds D / d columns), or
    with ``weights.after_up`` ``A = u + conv(u)``, ``u = h V + a``, depthwise. A token without a time takes no part in
    the convolution.

    Args:
        x: what the adapter reads, tokens (S, L, D), any strides; see :class:`TimeLayout` for their order.
        base: what its result is added to, (S, L, D).
        weights: see :class:`MSTAWeights`.
        time: where the frames are; None leaves the convolution out.
        scale: lambda.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (S, L, D), dtype of base.

    Raises:
        ValueError: shapes or devices that do not fit together, tokens that are no whole clips.
        TypeError: tensors that are not floating-point.

    Source: MSTA (CVPR 2025), Fig. 2; the temporal up-projection in both readings that its parameter count allows.
    """
    _check(x, base, weights, time)
    chosen = dispatch.choose("msta_adapter", x, backend, weights.down_weight.shape[0])
    tensors = [tensor for tensor in weights if isinstance(tensor, Tensor)]
    if chosen == "reference" or _grouped_otherwise(weights):
        cast = _weights((tensor.to(x.dtype) for tensor in tensors), weights.after_up)
        return reference.msta_adapter(x, base, cast, time, scale)
    dtype = dispatch.compute_dtype("msta_adapter", x)
    layout = (0, False) if time is None or weights.conv_weight is None else tuple(time)
    tensors = [tensor.to(dtype) for tensor in (tensors if layout[0] else tensors[:6])]
    options = (*layout, weights.after_up, scale, chosen)
    if base.dtype != torch.float64:  # under autocast the stream keeps its precision
        return _run(x.to(dtype), base, tensors, options)
    return base + _run(x.to(dtype), torch.zeros_like(base, dtype=dtype), tensors, options)


def _run(x: Tensor, base: Tensor, weights: list[Tensor], options: tuple[Any, ...]) -> Tensor:
    train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, base, *weights))
    if watched(x, base, *weights):
        return torch.ops.m2clip.msta_adapter(x, base, weights, *options, train)[0]
    if train:
        return _MSTAAdapter.apply(x, base, options, *weights)
    return _forward(x, base, weights, *options, False)[0]


def _grouped_otherwise(weights: MSTAWeights) -> bool:
    """Whether a group of the convolution has several hidden channels, which no kernel is written for."""
    return weights.conv_weight is not None and weights.conv_weight.shape[1] != 1


def _check(x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None) -> None:
    for name, tensor in (("x", x), ("base", base)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if x.dim() != 3 or base.shape != x.shape:
        raise ValueError(f"x and base must both be (S, L, D), got {tuple(x.shape)} and {tuple(base.shape)}")
    width, dim = weights.down_weight.shape[0], x.shape[2]
    shapes: dict[str, tuple[int, ...]] = {
        "down_weight": (width, dim),
        "down_bias": (width,),
        "shared_weight": (width, width),
        "shared_bias": (width,),
        "up_weight": (dim, width),
        "up_bias": (dim,),
        "conv_bias": (dim,),
    }
    if weights.conv_weight is not None:
        source = dim if weights.after_up else width
        inputs = weights.conv_weight.shape[1] if weights.conv_weight.dim() == 3 else 1
        if source % inputs or dim % (source // inputs):
            raise ValueError(f"conv_weight takes groups of {inputs} channels, into which {source} do not fall")
        shapes["conv_weight"] = (dim, inputs, 3)
    for field, shape in shapes.items():
        tensor = getattr(weights, field)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{field} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{field} is on {tensor.device} and x is on {x.device}: move one of them")
    if (weights.conv_weight is None) != (weights.conv_bias is None):
        raise ValueError("conv_weight and conv_bias come together, and one of them is None")
    if base.device != x.device:
        raise ValueError(f"base is on {base.device} and x is on {x.device}: move one of them")
    if time is None:
        return
    if time.num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {time.num_frames}")
    if time.joint and (x.shape[1] < 1 or (x.shape[1] - 1) % time.num_frames):
        raise ValueError(f"{x.shape[1]} tokens are no class token and patches of {time.num_frames} frames")
    if not time.joint and x.shape[0] % time.num_frames:
        raise ValueError(f"the first dimension of x ({x.shape[0]}) is not a multiple of num_frames ({time.num_frames})")
