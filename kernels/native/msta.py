"""msta_adapter on the native backend: matrix products by torch, the convolution over frames compiled.

Clips are worked through a few at a time. The convolution writes base, biases and its own part into the output before
the up-projection is added to it; on the way back it writes its part of dh before the up-projection's is added. Kept for
the backward pass are x and the two bottleneck tensors after their ReLU, which also say where the ReLU was open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..operands import MSTAWeights, TimeLayout, as_rows, in_layout_of
from .extension import DTYPES, activate_backward, add_bias, copy_and_sum, extension, workspace
from .ted import Sums, chunk_rows


def forward(
    x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (S, L, D) and both hidden tensors (S, L, d), empty unless they are kept; base may have another dtype than x."""
    x, base = x.contiguous(), base.contiguous()
    width, dim = weights.down_weight.shape
    y = torch.empty_like(base)
    kept = [x.new_empty((*x.shape[:2], width) if keep else 0) for _ in range(2)]
    convolution = _Convolution(weights, time, scale)
    for part in _chunks(x, width, time):
        source, start, out = x[part], base[part], y[part]
        if base.dtype != x.dtype:
            start, out = torch.zeros_like(source), torch.empty_like(source)
        shape = (*source.shape[:2], width)
        memory = None if keep else workspace((2, *shape), x.dtype)
        first, second = (kept[i][part] if memory is None else memory[i] for i in range(2))
        _project_up_to(weights, source, first, second)
        if time is not None and weights.after_up:
            widened = torch.addmm(weights.up_bias, as_rows(second), weights.up_weight.t())
            convolution.forward(widened.view_as(out), start, out)
        else:
            if time is None:
                bias = weights.up_bias.float() * scale
                add_bias(start, bias, bias, False, out)
            else:
                convolution.forward(second, start, out)
            as_rows(out).addmm_(as_rows(second), weights.up_weight.t(), alpha=scale)
        if base.dtype != x.dtype:
            torch.add(base[part], out, out=y[part])
    return y, kept[0], kept[1]


def backward(
    dy: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    weights: MSTAWeights,
    time: TimeLayout | None,
    scale: float,
    need_x: bool,
    need_w: bool,
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in their order, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    sums, convolution = Sums(x.dtype), _Convolution(weights, time, scale)
    for part in _chunks(x, first.shape[-1], time):
        source, slope, hidden, h = x[part], dy[part], first[part], second[part]
        dh = as_rows(_gradient_of_second(slope, h, weights, time, scale, convolution, sums))
        slopes, dh_sum = _through_relu(h, dh)
        sums.add_product("shared", slopes.t(), as_rows(hidden))
        sums.add("shared bias", dh_sum)
        slopes, hidden_sum = _through_relu(hidden, slopes @ weights.shared_weight)
        if need_w:
            sums.add_product("down", slopes.t(), as_rows(source))
            sums.add("down bias", hidden_sum)
        if need_x:
            torch.mm(slopes, weights.down_weight, out=as_rows(dx[part]))
    if not need_w:
        return dx, []
    tensors = weights.tensors()
    if not sums.total:  # an empty batch
        return dx, [torch.zeros_like(tensor) for tensor in tensors]
    names = ("down", "down bias", "shared", "shared bias", "up", "up bias", "conv", "conv bias")
    gradients = [sums.total[name][0] for name in names[: len(tensors)]]
    return dx, [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


class _Convolution:
    """The convolution over frames with everything that is added beside it, at a scale."""

    def __init__(self, weights: MSTAWeights, time: TimeLayout | None, scale: float) -> None:
        if time is None:
            return
        assert weights.conv_weight is not None and weights.conv_bias is not None  # the operation has checked it
        taps, conv_bias, up_bias = (
            tensor.float() for tensor in (weights.conv_weight, weights.conv_bias, weights.up_bias)
        )
        taps = taps.flatten(1).t().contiguous()
        self.time, self.scale, self.after_up = time, scale, weights.after_up
        if self.after_up:  # what is convolved is added as well, and its bias is in it
            taps[1] += 1
            self.bias, self.lead_bias, self.lead_tap = conv_bias * scale, torch.zeros_like(up_bias), scale
        else:
            self.bias, self.lead_bias, self.lead_tap = (up_bias + conv_bias) * scale, up_bias * scale, 0.0
        self.taps = taps * scale

    def forward(self, h: Tensor, base: Tensor, out: Tensor) -> None:
        """out = base + scale * (biases + convolution of h); of a token without a time all but the convolution."""
        addresses = (tensor.data_ptr() for tensor in (h, base, self.taps, self.bias, self.lead_bias))
        threads = torch.get_num_threads()
        shape = self._shape(h, out)
        extension.frame_conv(DTYPES[h.dtype], shape, *addresses, self.lead_tap, out.data_ptr(), threads)

    def backward(self, h: Tensor, dy: Tensor, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write dh; the gradients of conv_weight (D, 1, 3) and conv_bias, and the scaled sum of dy over all tokens."""
        sums = torch.empty(5, dy.shape[-1])
        addresses = (tensor.data_ptr() for tensor in (h, dy, self.taps))
        targets = (dh.data_ptr(), sums.data_ptr(), torch.get_num_threads())
        extension.frame_conv_backward(DTYPES[h.dtype], self._shape(h, dy), *addresses, self.lead_tap, *targets)
        sums *= self.scale
        return sums[:3].t().unsqueeze(1), sums[3], sums[3] + sums[4]

    def _shape(self, h: Tensor, out: Tensor) -> Any:
        frames, lead = self.time.num_frames, int(self.time.joint)
        sequences, tokens, channels = h.shape
        clips = sequences if self.time.joint else sequences // frames
        positions = (tokens - lead) // frames if self.time.joint else tokens
        return extension.FrameConvShape(clips, frames, positions, lead, self.time.joint, channels, out.shape[-1])


def _project_up_to(weights: MSTAWeights, x: Tensor, first: Tensor, second: Tensor) -> None:
    torch.addmm(weights.down_bias, as_rows(x), weights.down_weight.t(), out=as_rows(first)).relu_()
    torch.addmm(weights.shared_bias, as_rows(first), weights.shared_weight.t(), out=as_rows(second)).relu_()


def _gradient_of_second(
    dy: Tensor,
    h: Tensor,
    weights: MSTAWeights,
    time: TimeLayout | None,
    scale: float,
    convolution: _Convolution,
    sums: Sums,
) -> Tensor:
    """dh of the second hidden tensor; adds the gradients of what follows it to the sums."""
    up = weights.up_weight
    if time is None:
        sums.add("up bias", copy_and_sum(dy, False, None)[1] * scale)
        sums.add("up", as_rows(dy).t() @ as_rows(h) * scale)
        return (as_rows(dy) @ up).mul_(scale).view_as(h)
    if weights.after_up:
        widened = torch.addmm(weights.up_bias, as_rows(h), up.t()).view_as(dy)
        slope = torch.empty_like(widened)
        conv, conv_bias, _ = convolution.backward(widened, dy, slope)
        sums.add("up bias", copy_and_sum(slope, False, None)[1])
        sums.add_product("up", as_rows(slope).t(), as_rows(h))
        dh = (as_rows(slope) @ up).view_as(h)
    else:
        dh = torch.empty_like(h)
        conv, conv_bias, up_bias = convolution.backward(h, dy, dh)
        sums.add("up bias", up_bias)
        sums.add("up", as_rows(dy).t() @ as_rows(h) * scale)
        as_rows(dh).addmm_(as_rows(dy), up, alpha=scale)
    sums.add("conv", conv)
    sums.add("conv bias", conv_bias)
    return dh


def _through_relu(h: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The slope where the ReLU that gave h was open, (N, d), and its column sums."""
    through = torch.empty_like(slope)
    return through, activate_backward("relu", as_rows(h), slope, None, through)


def _chunks(x: Tensor, width: int, time: TimeLayout | None) -> Iterator[slice]:
    """Ranges of sequences: whole clips, at least one."""
    if x.numel() == 0:
        return iter(())
    sequences = 1 if time is None or time.joint else time.num_frames
    step = max(chunk_rows(width, x.dtype) // (x.shape[1] * sequences), 1) * sequences
    return (slice(start, start + step) for start in range(0, x.shape[0], step))
