"""The native backend: tensors of the CPU handed to the compiled kernels as addresses, matrix products left to torch.

Every function here takes plain tensors that have been checked; autograd and operator registration are in ops.py.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    from m2clip import _native as extension
except ImportError as error:
    extension: Any = None
    MISSING = str(error)
else:
    MISSING = ""
    # The threads of torch's own OpenMP runtime: a second pool beside it would fight for the same cores.
    SHARES_THREADS = extension.use_openmp_of(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CHUNK_ROWS = 2048  # tokens whose u, du and dh are alive at a time, in whole clips: they stay in the cache


class Geometry(NamedTuple):
    """How the rows of a (B*T, L, D) tensor are clips, frames and patches."""

    num_frames: int
    grid: tuple[int, int]
    class_token: bool


class Mixer:
    """Everything between the two projections of a TED-Adapter, for given convolution weights.

    Args:
        temporal: conv_weight (R, 1, 3) and conv_bias (R,), or empty.
        difference: conv_weight (R, 1, 3, 3), conv_bias (R,) and the bias (R,) of the down-projection, or empty.
        shared: both branches read the same R columns and their results are summed.
    """

    def __init__(self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry) -> None:
        self.geometry, self.shared = geometry, shared
        self.temporal = [tensor.float().contiguous() for tensor in temporal]
        self.difference = [tensor.float().contiguous() for tensor in difference]
        self.width = (temporal or difference)[0].shape[0]
        parts = [_address(tensor) for tensor in self.temporal] or [0, 0]
        self._parameters = extension.MixerParameters(*parts, *([_address(t) for t in self.difference] or [0, 0, 0]))

    def forward(self, h: Tensor) -> Tensor:
        """u of h, both (B*T, L, C): C is 2R with two projections (TE's first), else R."""
        h = h.contiguous()
        u = torch.empty_like(h)
        shape = self._shape(h)
        extension.mixer_forward(
            DTYPES[h.dtype], shape, self._parameters, h.data_ptr(), u.data_ptr(), torch.get_num_threads()
        )
        return u

    def backward(self, h: Tensor, du: Tensor, need_u: bool) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """(u or None, dh, fp32 gradients) of h and du (B*T, L, C).

        The gradients are those of the temporal convolution's weight and bias and of TE's down-projection bias, then the
        same of the difference branch; a branch that is off has none.
        """
        u, dh = torch.empty_like(h) if need_u else None, torch.empty_like(h)
        gradients = []
        for tensors in (self.temporal, self.difference):
            if tensors:
                gradients += [torch.empty_like(tensors[0]), torch.empty_like(tensors[1]), torch.empty_like(tensors[1])]
        addresses = [_address(tensor) for tensor in gradients]
        if not self.temporal:
            addresses = [0, 0, 0, *addresses]
        addresses += [0] * (6 - len(addresses))
        extension.mixer_backward(
            DTYPES[h.dtype],
            self._shape(h),
            self._parameters,
            h.data_ptr(),
            du.data_ptr(),
            0 if u is None else u.data_ptr(),
            dh.data_ptr(),
            extension.MixerGradients(*addresses),
            torch.get_num_threads(),
        )
        return u, dh, gradients

    def _shape(self, h: Tensor) -> Any:
        frames, tokens, _ = h.shape
        clips = frames // self.geometry.num_frames
        switches = (self.geometry.class_token, bool(self.temporal), bool(self.difference), self.shared)
        return extension.MixerShape(
            clips, self.geometry.num_frames, tokens, *self.geometry.grid, self.width, *switches
        )


def add_bias(x: Tensor, class_bias: Tensor, patch_bias: Tensor, class_token: bool) -> Tensor:
    """x + bias for contiguous x (N, L, D); biases (D,) fp32, one for the class token's rows and one for all others."""
    out = torch.empty_like(x)
    extension.add_bias(
        DTYPES[x.dtype],
        x.data_ptr(),
        class_bias.data_ptr(),
        patch_bias.data_ptr(),
        out.data_ptr(),
        *x.shape[:2],
        class_token,
        x.shape[2],
        torch.get_num_threads(),
    )
    return out


def copy_and_sum(x: Tensor, class_token: bool, copy: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """A copy of contiguous x (N, L, D), or None, and the fp32 sums (D,) over its class tokens and over all others."""
    out = torch.empty_like(x) if copy else None
    sums = torch.empty(2, x.shape[2], dtype=torch.float32)
    extension.copy_and_sum(
        DTYPES[x.dtype],
        x.data_ptr(),
        0 if out is None else out.data_ptr(),
        sums[0].data_ptr(),
        sums[1].data_ptr(),
        *x.shape[:2],
        class_token,
        x.shape[2],
        torch.get_num_threads(),
    )
    return out, sums[0], sums[1]


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()
