"""The compiled extension: its kernels on CPU tensors, handed over as addresses.

Nothing here knows of autograd or of operators, and nothing is checked again: the operation has seen the shapes.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import torch
from torch import Tensor

from ..compiled import load
from ..operands import Geometry, MixerWeights, addresses

extension, MISSING = load("_native")
# The threads of torch's own OpenMP runtime: a second pool beside it would fight for the same cores.
SHARES_THREADS = extension is not None and extension.use_openmp_of(
    os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
)

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_KEPT_BYTES = 32 * 2**20  # a workspace larger than this is given back after its call

_local = threading.local()


def workspace(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory, until the next call on this thread: that one is given the same.

    A fresh allocation of some megabytes costs more in page faults than the kernels that write it.
    """
    size = torch.Size(shape).numel()
    if size * dtype.itemsize > _KEPT_BYTES:
        return torch.empty(shape, dtype=dtype)
    kept: Tensor | None = getattr(_local, "memory", None)
    if kept is None or kept.nbytes < size * dtype.itemsize:
        kept = _local.memory = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
    return kept[: size * dtype.itemsize].view(dtype).view(shape)


def forget_workspaces() -> None:
    """Give back the memory that this thread keeps for its calls."""
    _local.__dict__.clear()


class Mixer(MixerWeights):
    """The mixer on the CPU; h may also be some columns of a wider contiguous tensor."""

    def __init__(self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry) -> None:
        temporal, difference = ([tensor.float() for tensor in part] for part in (temporal, difference))
        super().__init__(temporal, difference, shared, geometry)
        self._parameters = extension.MixerParameters(*addresses(self.temporal, 2), *addresses(self.difference, 3))

    def forward(self, h: Tensor, u: Tensor) -> None:
        """Write u of h."""
        extension.mixer_forward(
            DTYPES[h.dtype], self._shape(h), self._parameters, h.data_ptr(), u.data_ptr(), torch.get_num_threads()
        )
        if self.geometry.patches_only:
            u[:, 0] = 0

    def backward(self, h: Tensor, du: Tensor, dh: Tensor) -> list[Tensor]:
        """Write dh; return the fp32 gradients."""
        temporal, difference = self.gradients()
        if self.geometry.patches_only:
            du[:, 0] = 0
        extension.mixer_backward(
            DTYPES[h.dtype],
            self._shape(h),
            self._parameters,
            h.data_ptr(),
            du.data_ptr(),
            dh.data_ptr(),
            extension.MixerGradients(*addresses(temporal, 3), *addresses(difference, 3)),
            torch.get_num_threads(),
        )
        return self.in_order(temporal, difference)

    def _shape(self, h: Tensor) -> Any:
        frames, tokens, _ = h.shape
        num_frames, grid, class_token, _ = self.geometry
        switches = (class_token, bool(self.temporal), bool(self.difference), self.shared)
        return extension.MixerShape(frames // num_frames, num_frames, tokens, *grid, self.width, h.stride(1), *switches)


def add_bias(x: Tensor, class_bias: Tensor, patch_bias: Tensor, class_token: bool, out: Tensor) -> None:
    """out = x + bias for contiguous (N, L, D); biases (D,) fp32, one for class tokens and one for all other tokens."""
    extension.add_bias(
        DTYPES[x.dtype],
        x.data_ptr(),
        class_bias.data_ptr(),
        patch_bias.data_ptr(),
        out.data_ptr(),
        x.shape[0],
        x.shape[1],
        class_token,
        x.shape[2],
        torch.get_num_threads(),
    )


def copy_and_sum(x: Tensor, class_token: bool, out: Tensor | None) -> Tensor:
    """Copy contiguous x (N, L, D) to out, unless None; return fp32 sums (2, D) over class tokens and all others."""
    sums = torch.empty(2, x.shape[2], dtype=torch.float32)
    extension.copy_and_sum(
        DTYPES[x.dtype],
        x.data_ptr(),
        0 if out is None else out.data_ptr(),
        sums[0].data_ptr(),
        sums[1].data_ptr(),
        x.shape[0],
        x.shape[1],
        class_token,
        x.shape[2],
        torch.get_num_threads(),
    )
    return sums


def activate(activation: str, h: Tensor, g: Tensor) -> None:
    """g = act(h) for contiguous (N, R)."""
    extension.activation_forward(
        DTYPES[h.dtype], activation, h.data_ptr(), g.data_ptr(), h.shape[0], h.shape[1], torch.get_num_threads()
    )


def activate_backward(activation: str, h: Tensor, dg: Tensor, g: Tensor | None, dh: Tensor) -> Tensor:
    """dh = dg act'(h), and g = act(h) once more unless None; returns the fp32 column sums (R,) of dh."""
    sums = torch.empty(h.shape[1], dtype=torch.float32)
    extension.activation_backward(
        DTYPES[h.dtype],
        activation,
        h.data_ptr(),
        dg.data_ptr(),
        0 if g is None else g.data_ptr(),
        dh.data_ptr(),
        sums.data_ptr(),
        h.shape[0],
        h.shape[1],
        torch.get_num_threads(),
    )
    return sums
