"""ted_adapter on the native backend: two matrix products by torch and the compiled mixer between them.

Clips are worked through a few at a time, so that what lies between the products stays in the cache and takes little
memory. The residual and the biases are written into the output before the up-projection is added to it. Only x and h
are needed again for the backward pass, which computes u once more (docs/ted_backward.md derives it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..operands import Branches, Geometry, as_rows, weight_gradients
from .extension import Mixer, add_bias, copy_and_sum, workspace

CHUNK_BYTES = 4 * 2**20  # of h that are worked on at a time, in whole clips
WIDEST_TOGETHER = 128  # R up to which the backward pass takes both branches at once


def forward(x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C), empty unless it is kept. Without residual y is the branches alone."""
    x = x.contiguous()
    down, down_bias, up = branches.down_weight(), branches.down_bias(), branches.up_weight()
    class_bias, patch_bias = branches.up_biases(geometry.patches_only)
    mixer = Mixer.of(branches, geometry)
    y, h = torch.empty_like(x), x.new_empty(branches.hidden_shape(x) if keep else 0)
    for frames in _chunks(x, branches, geometry):
        source, out = x[frames], y[frames]
        shape = (*source.shape[:2], down.shape[0])
        mixed, *rest = workspace((1 if keep else 2, *shape), x.dtype)
        hidden = h[frames] if keep else rest[0]
        if down_bias is None:
            torch.mm(as_rows(source), down.t(), out=as_rows(hidden))
        else:
            torch.addmm(down_bias, as_rows(source), down.t(), out=as_rows(hidden))
        mixer.forward(hidden, mixed)
        if residual:
            add_bias(source, class_bias, patch_bias, geometry.class_token, out)
        else:
            out[:] = patch_bias
            out[:, : int(geometry.class_token)] = class_bias
        as_rows(out).addmm_(as_rows(mixed), up.t())
    return y, h


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    parts = _parts(branches)
    steps = [(part.down_weight(), part.up_weight(), Mixer.of(part, geometry)) for part in parts]
    columns = steps[0][0].shape[0]
    sums = [Sums(x.dtype) for _ in parts]
    for frames in _chunks(x, branches, geometry):
        source, slope, hidden = x[frames], dy[frames], h[frames].split(columns, dim=2)
        for step, (down, up, mixer) in enumerate(steps):
            mixed, dh = workspace((2, *source.shape[:2], columns), x.dtype)
            if need_w:
                mixer.forward(hidden[step], mixed)
                sums[step].add_product("up", as_rows(slope).t(), as_rows(mixed))
            torch.mm(as_rows(slope), up, out=as_rows(mixed))  # du, in the memory of u, which has served
            small = mixer.backward(hidden[step], mixed, dh)
            if need_w:
                sums[step].add_product("down", as_rows(dh).t(), as_rows(source))
                sums[step].add("small", *small)
            if step == 0 and (need_w or need_x):
                row_sums = copy_and_sum(slope, geometry.class_token, dx[frames] if need_x and residual else None)
            if need_w:
                sums[step].add("rows", *row_sums)
            if need_x and (residual or step > 0):
                as_rows(dx[frames]).addmm_(as_rows(dh), down)
            elif need_x:
                torch.mm(as_rows(dh), down, out=as_rows(dx[frames]))
    if not need_w:
        return dx, []
    if x.numel() == 0:
        return dx, [torch.zeros_like(tensor) for part in branches for tensor in part]
    gradients = (
        weight_gradients(part, *own.products(), geometry.patches_only) for part, own in zip(parts, sums, strict=True)
    )
    return dx, [gradient for group in gradients for gradient in group]


def _parts(branches: Branches) -> list[Branches]:
    """What the backward pass takes at once. Wide branches follow each other: half the memory for du and dh."""
    if len(branches.projections()) == 2 and branches.temporal[0].shape[0] > WIDEST_TOGETHER:
        return [Branches(branches.temporal, []), Branches([], branches.difference)]
    return [branches]


class Sums:
    """Sums over chunks, in fp32 whatever the dtype of the products."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.total = dtype, dict[str, list[Tensor]]()

    def add(self, name: str, *terms: Tensor) -> None:
        """Add terms, each to a sum of its own; the first ones' memory is kept."""
        before = self.total.get(name)
        self.total[name] = [term.float() for term in terms] if before is None else list(map(torch.add, before, terms))

    def add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Add a @ b."""
        if name in self.total and self.dtype == torch.float32:
            self.total[name][0].addmm_(a, b)
        else:
            self.add(name, a @ b)

    def products(self) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """What has been added under the names down, up, rows and small, as `weight_gradients` takes it."""
        total = self.total
        class_sum, patch_sum = total["rows"]
        return total["down"][0], total["up"][0], class_sum, patch_sum, total["small"]


def chunk_rows(columns: int, dtype: torch.dtype) -> int:
    """Rows of h, of so many columns, that are worked on at a time."""
    return max(CHUNK_BYTES // (columns * dtype.itemsize), 1)


def _chunks(x: Tensor, branches: Branches, geometry: Geometry) -> Iterator[slice]:
    """Ranges of frames: whole clips, at least one."""
    if x.numel() == 0:
        return iter(())
    rows = chunk_rows(branches.hidden_shape(x)[2], x.dtype)
    step = max(rows // (x.shape[1] * geometry.num_frames), 1) * geometry.num_frames
    return (slice(start, start + step) for start in range(0, x.shape[0], step))
