"""ted_adapter on the native backend: two matrix products by torch and the compiled mixer between them.

Clips are worked through a few at a time, so that what lies between the products stays in the cache and takes little
memory. The residual and the biases are written into the output before the up-projection is added to it. Only x and h
are needed again for the backward pass, which computes u once more (docs/ted_backward.md derives it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .native import Mixer, add_bias, copy_and_sum, workspace
from .operands import Branches, Geometry

CHUNK_ROWS = 2048  # tokens that are worked on at a time, in whole clips


def forward(x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """y and h, (B*T, L, D) and (B*T, L, C); h is empty unless it is kept. Without residual y is the branch alone."""
    x = x.contiguous()
    down, up, down_bias = branches.down_weight(), branches.up_weight(), branches.down_bias()
    biases = branches.up_biases()
    mixer = _mixer(branches, geometry)
    y, columns = torch.empty_like(x), down.shape[0]
    h = x.new_empty(*x.shape[:2], columns) if keep else x.new_empty(0)
    for frames in _chunks(x, geometry):
        part, out = x[frames], y[frames]
        shape = (*part.shape[:2], columns)
        hidden = h[frames] if keep else workspace("h", shape, x.dtype)
        mixed = workspace("u", shape, x.dtype)
        if down_bias is None:
            torch.mm(_rows(part), down.t(), out=_rows(hidden))
        else:
            torch.addmm(down_bias, _rows(part), down.t(), out=_rows(hidden))
        mixer.forward(hidden, mixed)
        if residual:
            add_bias(part, *biases, geometry.class_token, out)
        else:
            out[:] = biases[1]
            out[:, : int(geometry.class_token)] = biases[0]
        _rows(out).addmm_(_rows(mixed), up.t())
    return y, h


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, empty unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    down, up = branches.down_weight(), branches.up_weight()
    mixer = _mixer(branches, geometry)
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    sums = Sums(x.dtype)
    for frames in _chunks(x, geometry):
        part, gradient, hidden = x[frames], dy[frames], h[frames]
        du, dh = (workspace(name, tuple(hidden.shape), x.dtype) for name in ("du", "dh"))
        u = workspace("u", tuple(hidden.shape), x.dtype) if need_w else None
        torch.mm(_rows(gradient), up, out=_rows(du))
        small = mixer.backward(hidden, du, u, dh)
        out = dx[frames] if need_x else None
        if need_w or (need_x and residual):
            row_sums = copy_and_sum(gradient, geometry.class_token, out if residual else None)
        if u is not None:
            sums.add_product("up", _rows(gradient).t(), _rows(u))
            sums.add_product("down", _rows(dh).t(), _rows(part))
            sums.add("rows", row_sums)
            for index, tensor in enumerate(small):
                sums.add(f"small {index}", tensor)
        if out is not None and residual:
            _rows(out).addmm_(_rows(dh), down)
        elif out is not None:
            torch.mm(_rows(dh), down, out=_rows(out))
    return dx, _weight_gradients(sums, branches, geometry) if need_w else []


def _mixer(branches: Branches, geometry: Geometry) -> Mixer:
    difference = branches.difference
    if difference:
        down_bias = branches.temporal[1] if branches.shared else difference[1]
        difference = [*branches.difference_conv(), down_bias]
    return Mixer(branches.temporal[2:4], difference, branches.shared, geometry)


class Sums:
    """Sums over chunks, in fp32 whatever the dtype of the products."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.total = dtype, dict[str, Tensor]()

    def add(self, name: str, term: Tensor) -> None:
        if name in self.total:
            self.total[name] += term
        else:
            self.total[name] = term.float()

    def add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        if name in self.total and self.dtype == torch.float32:
            self.total[name].addmm_(a, b)
        else:
            self.add(name, a @ b)


def _weight_gradients(sums: Sums, branches: Branches, geometry: Geometry) -> list[Tensor]:
    total = sums.total
    if not total:  # an empty batch
        return [torch.zeros_like(tensor) for part in branches for tensor in part]
    parts = branches.projections()
    width = parts[0][0].shape[0]
    downs = total["down"].split(width)
    ups = total["up"].split(width, dim=1)
    class_sum, patch_sum = total["rows"]
    small = [total[f"small {index}"] for index in range(3 * sum(bool(part) for part in branches))]
    gradients: list[Tensor] = []
    if branches.temporal:
        conv_weight, conv_bias, down_bias = small[:3]
        if branches.shared:
            down_bias = down_bias + small[5]
        gradients += [downs[0], down_bias, conv_weight, conv_bias, ups[0], class_sum + patch_sum]
    if branches.shared:
        gradients += small[3:5]
    elif branches.difference:
        conv_weight, conv_bias, down_bias = small[-3:]
        gradients += [downs[-1], down_bias, conv_weight, conv_bias, ups[-1], patch_sum]
    tensors = [tensor for part in branches for tensor in part]
    return [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def in_layout_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's dtype and strides, which DistributedDataParallel wants, in memory of its own."""
    own_memory = gradient.untyped_storage().nbytes() == gradient.nbytes
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride() and own_memory:
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def _chunks(x: Tensor, geometry: Geometry) -> Iterator[slice]:
    """Ranges of frames: whole clips, about CHUNK_ROWS tokens."""
    frames, tokens, _ = x.shape
    step = max(CHUNK_ROWS // max(tokens * geometry.num_frames, 1), 1) * geometry.num_frames
    if x.numel() == 0:
        return iter(())
    return (slice(start, min(start + step, frames)) for start in range(0, frames, step))


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
