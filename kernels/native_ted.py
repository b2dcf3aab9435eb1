"""ted_adapter on the native backend: two matrix products by torch and the compiled mixer between them.

Clips are worked through a few at a time, and wide branches one after the other, so that what lies between the products
stays in the cache and takes little memory. The residual and the biases are written into the output before the
up-projections are added to it. Only x and h are needed again for the backward pass, which computes u once more
(docs/ted_backward.md derives it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .native import Mixer, add_bias, copy_and_sum, workspace
from .operands import Branches, Geometry

CHUNK_BYTES = 4 * 2**20  # of h that are worked on at a time, in whole clips: with u they fit into the caches


def forward(x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (`branches.hidden_shape`), empty unless kept. Without residual y is the branches alone."""
    x = x.contiguous()
    class_bias, patch_bias = branches.up_biases()
    steps = [(part, part.down_weight(), part.up_weight(), _mixer(part, geometry)) for part in branches.steps()]
    y, h = torch.empty_like(x), x.new_empty(branches.hidden_shape(x) if keep else 0)
    for frames in _chunks(x, branches, geometry):
        source, out = x[frames], y[frames]
        if residual:
            add_bias(source, class_bias, patch_bias, geometry.class_token, out)
        else:
            out[:] = patch_bias
            out[:, : int(geometry.class_token)] = class_bias
        for index, (part, down, up, mixer) in enumerate(steps):
            shape = (*source.shape[:2], down.shape[0])
            hidden = h[index, frames] if keep else workspace("h", shape, x.dtype)
            mixed = workspace("u", shape, x.dtype)
            bias = part.down_bias()
            if bias is None:
                torch.mm(_rows(source), down.t(), out=_rows(hidden))
            else:
                torch.addmm(bias, _rows(source), down.t(), out=_rows(hidden))
            mixer.forward(hidden, mixed)
            _rows(out).addmm_(_rows(mixed), up.t())
    return y, h


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    steps = [(part, part.down_weight(), part.up_weight(), _mixer(part, geometry)) for part in branches.steps()]
    sums = [Sums(x.dtype) for _ in steps]
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    for frames in _chunks(x, branches, geometry):
        source, slope = x[frames], dy[frames]
        out = dx[frames] if need_x else None
        if need_w or (need_x and residual):
            row_sums = copy_and_sum(slope, geometry.class_token, out if residual else None)
        for index, (_, down, up, mixer) in enumerate(steps):
            hidden = h[index, frames]
            mixed, dh = (workspace(name, tuple(hidden.shape), x.dtype) for name in ("u", "dh"))
            if need_w:
                mixer.forward(hidden, mixed)
                sums[index].add_product("up", _rows(slope).t(), _rows(mixed))
                sums[index].add("rows", row_sums)
            du = torch.mm(_rows(slope), up, out=_rows(mixed)).view_as(hidden)  # u has served, its memory serves again
            small = mixer.backward(hidden, du, dh)
            if need_w:
                sums[index].add_product("down", _rows(dh).t(), _rows(source))
                sums[index].add_all("small", small)
            if out is not None and (residual or index > 0):
                _rows(out).addmm_(_rows(dh), down)
            elif out is not None:
                torch.mm(_rows(dh), down, out=_rows(out))
    if not need_w:
        return dx, []
    gradients = [_gradients(part, own) for (part, *_), own in zip(steps, sums, strict=True)]
    return dx, [gradient for group in gradients for gradient in group]


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
        """Add a term; the first one's memory is kept."""
        if name in self.total:
            self.total[name] = self.total[name] + term
        else:
            self.total[name] = term.float()

    def add_all(self, name: str, terms: list[Tensor]) -> None:
        """Add terms that are told apart by their number."""
        for index, term in enumerate(terms):
            self.add(f"{name} {index}", term)

    def add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Add a @ b."""
        if name in self.total and self.dtype == torch.float32:
            self.total[name].addmm_(a, b)
        else:
            self.add(name, a @ b)


def _gradients(branches: Branches, sums: Sums) -> list[Tensor]:
    """The gradients of one step's weights."""
    total = sums.total
    tensors = [tensor for part in branches for tensor in part]
    if not total:  # an empty batch
        return [torch.zeros_like(tensor) for tensor in tensors]
    width = branches.projections()[0][0].shape[0]
    downs, ups = total["down"].split(width), total["up"].split(width, dim=1)
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
    return [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def in_layout_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's dtype and strides, which DistributedDataParallel wants, in memory of its own."""
    own_memory = gradient.untyped_storage().nbytes() == gradient.nbytes
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride() and own_memory:
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def chunk_rows(columns: int, dtype: torch.dtype) -> int:
    """Rows of h, of so many columns, that are worked on at a time."""
    return max(CHUNK_BYTES // (columns * dtype.itemsize), 1)


def _chunks(x: Tensor, branches: Branches, geometry: Geometry) -> Iterator[slice]:
    """Ranges of frames: whole clips, at least one."""
    if x.numel() == 0:
        return iter(())
    rows = chunk_rows(branches.hidden_shape(x)[-1], x.dtype)
    step = max(rows // (x.shape[1] * geometry.num_frames), 1) * geometry.num_frames
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
