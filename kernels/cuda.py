"""The compiled CUDA extension: its kernels on tensors of the current GPU, handed over as addresses.

Nothing here knows of autograd or of operators, and nothing is checked again: functional.py has seen the shapes. Every
call enqueues on PyTorch's current stream and returns at once; a launch that fails is a RuntimeError with CUDA's words.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import m2clip

from .operands import Geometry


def why_missing(error: str) -> str:
    """Why there is no extension: the note that the installation left, or the error of loading what it built."""
    if find_spec("m2clip._cuda") is not None:
        return f"it was built but does not load: {error}"
    note = Path(m2clip.__file__).with_name("_cuda_missing.txt")
    if note.exists():
        return note.read_text(encoding="utf-8").strip()
    return "it was never built; install m2clip again, or run `python setup.py build_ext --inplace` in a checkout"


extension: Any
try:
    from m2clip import _cuda as extension
except ImportError as error:
    extension = None
    MISSING = why_missing(str(error))
else:
    MISSING = ""

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Mixer:
    """Everything between the two projections of a TED-Adapter, for given convolution weights.

    Args:
        temporal: conv_weight (R, 1, 3) and conv_bias (R,), or empty.
        difference: conv_weight (R, 1, 3, 3), conv_bias (R,) and the bias (R,) of the down-projection, or empty.
        shared: both branches read the same R columns and their results are summed.
        geometry: frames of a clip, grid, class token.
        rows: of patches in a block's tile, at most; 0 for the static rule.

    Rows h, u, du and dh are contiguous (B*T, L, C); C is 2R with two projections (TE's columns first), else R. The
    weights are in their dtype.
    """

    def __init__(
        self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry, rows: int = 0
    ) -> None:
        self.geometry, self.shared, self.rows = geometry, shared, rows
        self.temporal = [tensor.contiguous() for tensor in temporal]
        self.difference = [tensor.contiguous() for tensor in difference]
        self.width = (temporal or difference)[0].shape[0]
        temporal_addresses = [tensor.data_ptr() for tensor in self.temporal] or [0, 0]
        difference_addresses = [tensor.data_ptr() for tensor in self.difference] or [0, 0, 0]
        self._weights = extension.MixerWeights(*temporal_addresses, *difference_addresses)

    def forward(self, h: Tensor, u: Tensor) -> None:
        """Write u of h."""
        extension.mixer_forward(
            DTYPES[h.dtype], self._shape(h), self._weights, h.data_ptr(), u.data_ptr(), self.rows, stream()
        )
        if self.geometry.patches_only:
            u[:, 0] = 0

    def backward(self, h: Tensor, du: Tensor, u: Tensor | None, dh: Tensor) -> list[Tensor]:
        """Write dh, and u once more unless it is None; return the fp32 gradients.

        They are those of TE's conv_weight, conv_bias and down-projection bias, then the same of TD; a branch that is
        off has none. du of class tokens that take no part is cleared.
        """
        if self.geometry.patches_only:
            du[:, 0] = 0
        dtype, shape = DTYPES[h.dtype], self._shape(h)
        size = extension.mixer_workspace(dtype, shape, self.rows)
        workspace = torch.empty(size, dtype=torch.float32, device=h.device)
        temporal, difference = (
            [torch.empty_like(tensor, dtype=torch.float32) for tensor in (tensors[0], tensors[1], tensors[1])]
            if tensors
            else []
            for tensors in (self.temporal, self.difference)
        )
        addresses = [[tensor.data_ptr() for tensor in part] or [0, 0, 0] for part in (temporal, difference)]
        extension.mixer_backward(
            dtype,
            shape,
            self._weights,
            h.data_ptr(),
            du.data_ptr(),
            0 if u is None else u.data_ptr(),
            dh.data_ptr(),
            workspace.data_ptr(),
            extension.MixerGradients(*addresses[0], *addresses[1]),
            self.rows,
            stream(),
        )
        if self.geometry.patches_only and u is not None:
            u[:, 0] = 0
        return temporal + difference

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
