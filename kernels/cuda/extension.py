"""The compiled CUDA extension: its kernels on tensors of the current GPU, handed over as addresses.

Nothing here knows of autograd or of operators, and nothing is checked again: the operation has seen the shapes. Every
call enqueues on PyTorch's current stream and returns at once; a launch that fails is a RuntimeError with CUDA's words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compiled import load
from ..operands import Geometry, MixerWeights, addresses

extension, MISSING = load("_cuda")

STATIC_RULE = 0  # for the rows of patches in a block's tile
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Mixer(MixerWeights):
    """The mixer on a GPU, of weights in the dtype of the rows."""

    def __init__(self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry) -> None:
        super().__init__(temporal, difference, shared, geometry)
        self._weights = extension.MixerWeights(*addresses(self.temporal, 2), *addresses(self.difference, 3))

    def forward(self, h: Tensor, u: Tensor) -> None:
        """Write u of h."""
        extension.mixer_forward(
            DTYPES[h.dtype], self._shape(h), self._weights, h.data_ptr(), u.data_ptr(), STATIC_RULE, stream()
        )
        if self.geometry.patches_only:
            u[:, 0] = 0

    def backward(self, h: Tensor, du: Tensor, dh: Tensor, u: Tensor | None = None) -> list[Tensor]:
        """Write dh, and u once more unless it is None; return the fp32 gradients."""
        if self.geometry.patches_only:
            du[:, 0] = 0
        dtype, shape = DTYPES[h.dtype], self._shape(h)
        size = extension.mixer_workspace(dtype, shape, STATIC_RULE)
        workspace = torch.empty(size, dtype=torch.float32, device=h.device)
        temporal, difference = self.gradients()
        extension.mixer_backward(
            dtype,
            shape,
            self._weights,
            h.data_ptr(),
            du.data_ptr(),
            0 if u is None else u.data_ptr(),
            dh.data_ptr(),
            workspace.data_ptr(),
            extension.MixerGradients(*addresses(temporal, 3), *addresses(difference, 3)),
            STATIC_RULE,
            stream(),
        )
        if self.geometry.patches_only and u is not None:
            u[:, 0] = 0
        return self.in_order(temporal, difference)

    def _shape(self, h: Tensor) -> Any:
        frames, tokens, _ = h.shape
        num_frames, grid, class_token, _ = self.geometry
        switches = (class_token, bool(self.temporal), bool(self.difference), self.shared)
        return extension.MixerShape(frames // num_frames, num_frames, tokens, *grid, self.width, *switches)


def add_residual(out: Tensor, residual: Tensor | None, biases: tuple[Tensor, Tensor], class_token: bool) -> None:
    """out += bias + residual for contiguous (N, L, D) of one dtype.

    Args:
        out: a product, changed where it lies.
        residual: of the same shape, or None.
        biases: fp32 (D,) of the class token's rows and of all others.
        class_token: whether token 0 of each frame takes the first of the biases.
    """
    frames, tokens, columns = out.shape
    extension.add_residual(
        DTYPES[out.dtype],
        out.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        biases[0].data_ptr(),
        biases[1].data_ptr(),
        frames * tokens,
        columns,
        tokens,
        class_token,
        stream(),
    )


def stream() -> int:
    """The current GPU's current stream, as CUDA knows it."""
    return torch.cuda.current_stream().cuda_stream
