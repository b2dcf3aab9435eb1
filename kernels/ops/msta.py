"""msta_adapter: two projections with ReLU, one up, and beside or after it a convolution over frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..operands import MSTAWeights, TimeLayout
from ..verification.keys import msta_layout
from .checks import (
    check_count,
    check_device,
    check_flag,
    check_float,
    check_kind,
    check_number,
    check_shape,
    check_width,
)
from .operator import Operator

# ---- reference ----


def conv_over_frames(h: Tensor, weight: Tensor, bias: Tensor, time: TimeLayout) -> Tensor:
    """Convolution of kernel 3 over the frames of tokens (S, L, C), to (S, L, D); outside the clip h counts as 0.

    The weight is (D, C / groups, 3). A token without a time gets zeros.
    """
    first = int(time.joint)
    if time.joint:
        series = h[:, first:].unflatten(1, (-1, time.num_frames)).transpose(2, 3)  # (B, N, C, T)
    else:
        series = h.unflatten(0, (-1, time.num_frames)).permute(0, 2, 3, 1)  # (B, L, C, T)
    groups = h.shape[-1] // weight.shape[1]
    mixed = F.conv1d(series.flatten(0, 1), weight, bias, padding=1, groups=groups).unflatten(0, series.shape[:2])
    if time.joint:
        return F.pad(mixed.transpose(2, 3).flatten(1, 2), (0, 0, first, 0))
    return mixed.permute(0, 3, 1, 2).flatten(0, 1)


def msta_reference(x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None, scale: float) -> Tensor:
    """base + scale * A(x) for tokens (S, L, D): two projections with ReLU, then one up, beside it one over frames."""
    hidden = F.relu(F.linear(x, weights.down_weight, weights.down_bias))
    hidden = F.relu(F.linear(hidden, weights.shared_weight, weights.shared_bias))
    branch = F.linear(hidden, weights.up_weight, weights.up_bias)
    if time is not None and weights.conv_weight is not None and weights.conv_bias is not None:
        source = branch if weights.after_up else hidden
        branch = branch + conv_over_frames(source, weights.conv_weight, weights.conv_bias, time)
    return base + branch * scale


# ---- operator ----


def _setting(
    weights: Sequence[Tensor], num_frames: int, joint: bool, after_up: bool
) -> tuple[MSTAWeights, TimeLayout | None]:
    return _packed(weights, after_up), TimeLayout(num_frames, joint) if num_frames else None


def _packed(tensors: Sequence[Tensor], after_up: bool) -> MSTAWeights:
    """The weights of six tensors, or of eight."""
    fields: dict[str, Any] = dict(zip(MSTAWeights._fields, tensors, strict=False))
    return MSTAWeights(**fields, after_up=after_up)


def _reference(x: Tensor, base: Tensor, *options: Any) -> Tensor:
    *setting, scale = options
    return msta_reference(x, x.new_zeros(()), *_setting(*setting), scale)  # base's gradient is not asked for


def _forward(run: Any, x: Tensor, base: Tensor, *options: Any) -> Sequence[Tensor]:
    *setting, scale, keep = options
    return run.forward(x, base, *_setting(*setting), scale, keep)


def _backward(
    run: Any, dy: Tensor, saved: list[Tensor], needs: list[bool], x: Tensor, base: Tensor, *options: Any
) -> list[Tensor]:
    *setting, scale = options
    need_x, _, need_w = needs
    dx, gradients = run.backward(dy.to(x.dtype), x, *saved, *_setting(*setting), scale, need_x, need_w)
    return [dx, base.new_empty(0), *gradients]


def _like(run: Any, x: Tensor, base: Tensor, weights: list[Tensor], *options: Any) -> Sequence[Tensor]:
    shape = (*x.shape[:2], weights[0].shape[0])
    return torch.empty_like(base, memory_format=torch.contiguous_format), x.new_empty(shape), x.new_empty(shape)


def _flops(x: Any, base: Any, weights: Any, *options: Any) -> int:
    (width, dim), rows = weights[0], x[0] * x[1]
    return 2 * rows * width * (2 * dim + width)


def _backward_flops(needs: list[bool], x: Any, base: Any, weights: Any, *options: Any) -> int:
    need_x, _, need_w = needs
    width, dim = weights[0]
    return _flops(x, base, weights) * (1 + need_w) - (not need_x) * 2 * x[0] * x[1] * width * dim


def _check_arguments(x: Tensor, base: Tensor, tensors: list[Tensor], *options: Any) -> None:
    weights, time = _setting(tensors, *options[:-1])
    _check(x, base, weights, time)
    if (time is None) != (weights.conv_weight is None) or _grouped_otherwise(weights):
        raise ValueError("frames and a convolution over them, of one channel a group, come together")


_msta_adapter = Operator(
    "msta_adapter",
    "Tensor x, Tensor base, Tensor[] weights, int num_frames, bool joint, bool after_up, float scale",
    {"native": "native.msta", "triton": "triton.msta"},
    reference=_reference,
    forward=_forward,
    backward=_backward,
    like=_like,
    flops=_flops,
    backward_flops=_backward_flops,
    check=_check_arguments,
    added=1,
)


# ---- public ----


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
        ValueError: shapes or devices that do not fit together, a width of 0, tokens that are no whole clips.
        TypeError: tensors that are not floating-point, frames that are no integer, a scale that is no number.

    Source: MSTA (CVPR 2025), Fig. 2; the temporal up-projection in both readings that its parameter count allows.
    """
    scale = check_number("scale", scale)
    time = _check(x, base, weights, time)
    if _grouped_otherwise(weights) and backend == "auto":
        backend = "reference"
    over_frames = time is not None and weights.conv_weight is not None
    kind = msta_layout(over_frames, weights.after_up, time is not None and time.joint)
    chosen = dispatch.choose("msta_adapter", x, backend, weights.down_weight.shape[0], kind)
    tensors = weights.tensors()
    if chosen == "reference" or _grouped_otherwise(weights):
        cast = _packed([tensor.to(x.dtype) for tensor in tensors], weights.after_up)
        return msta_reference(x, base, cast, time, scale)
    dtype = dispatch.compute_dtype("msta_adapter", x)
    frames = (0, False) if time is None or weights.conv_weight is None else tuple(time)
    tensors = [tensor.to(dtype) for tensor in (tensors if frames[0] else tensors[:6])]
    options = (*frames, weights.after_up, scale, chosen)
    if base.dtype != torch.float64:  # under autocast the stream keeps its precision
        return _msta_adapter(x.to(dtype), base, tensors, *options)
    return base + _msta_adapter(x.to(dtype), torch.zeros_like(base, dtype=dtype), tensors, *options)


def _grouped_otherwise(weights: MSTAWeights) -> bool:
    """Whether a group of the convolution has several hidden channels, which no kernel is written for."""
    return weights.conv_weight is not None and weights.conv_weight.shape[1] != 1


def _check(x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None) -> TimeLayout | None:
    """The layout with a plain integer, where all fits together."""
    check_kind("weights", weights, MSTAWeights)
    check_flag("weights.after_up", weights.after_up)
    check_float("x", x)
    check_float("base", base)
    if x.dim() != 3 or base.shape != x.shape:
        raise ValueError(f"x and base must both be (S, L, D), got {tuple(x.shape)} and {tuple(base.shape)}")
    width, dim = check_width("down_weight", weights.down_weight), x.shape[2]
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
        if not inputs or source % inputs or dim % (source // inputs):
            raise ValueError(f"conv_weight takes groups of {inputs} channels, into which {source} do not fall")
        shapes["conv_weight"] = (dim, inputs, 3)
    for field, shape in shapes.items():
        tensor = getattr(weights, field)
        if tensor is not None or not field.startswith("conv"):
            check_shape(field, tensor, shape, x.device)
    if (weights.conv_weight is None) != (weights.conv_bias is None):
        raise ValueError("conv_weight and conv_bias come together, and one of them is None")
    check_device("base", base, x.device)
    if time is None:
        return None
    check_kind("time", time, TimeLayout)
    time = time._replace(num_frames=check_count("num_frames", time.num_frames))
    check_flag("joint", time.joint)
    if time.joint and (x.shape[1] < 1 or (x.shape[1] - 1) % time.num_frames):
        raise ValueError(f"{x.shape[1]} tokens are no class token and patches of {time.num_frames} frames")
    if not time.joint and x.shape[0] % time.num_frames:
        raise ValueError(f"the first dimension of x ({x.shape[0]}) is not a multiple of num_frames ({time.num_frames})")
    return time
