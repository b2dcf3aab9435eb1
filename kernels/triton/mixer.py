"""The mixer of the TED-Adapter on a GPU: launches of mixer_kernels.py and their configurations."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import Geometry
from .mixer_kernels import difference_backward_kernel, mixer_forward_kernel, temporal_backward_kernel

SUMS = 24  # rows of weight gradients: 3 + 1 + 1 of TE, 9 + 1 of TD, 9 sums of du over patches with that neighbour


class MixerConfig(NamedTuple):
    """Tile of a program: tokens, channels, warps."""

    tokens: int
    channels: int
    warps: int


def mixer_config(width: int, itemsize: int, backward: bool) -> MixerConfig:
    """The static rule: rows of 128 bytes, and the largest tile whose values stay in registers.

    The compiler's report decides (tests/test_triton_compile.py): with twice the tokens the forward kernel and the
    backward kernel of the difference branch spill on every architecture.
    """
    channels = min(128 // itemsize, triton.next_power_of_2(width))
    return MixerConfig(tokens=max((256 if backward else 512) // channels, 1), channels=channels, warps=4)


class Mixer:
    """Everything between the two projections of a TED-Adapter, for given convolution weights.

    Args:
        temporal: conv_weight (R, 1, 3) and conv_bias (R,), or empty.
        difference: conv_weight (R, 1, 3, 3), conv_bias (R,) and the bias (R,) of the down-projection, or empty.
        shared: both branches read the same R columns and their results are summed.
        geometry: frames of a clip, grid, class token.

    Rows h, u, du and dh are contiguous (B*T, L, C); C is 2R with two projections (TE's columns first), else R.
    """

    def __init__(self, temporal: list[Tensor], difference: list[Tensor], shared: bool, geometry: Geometry) -> None:
        self.geometry, self.shared = geometry, shared
        self.temporal = _tap_major(temporal)
        self.difference = _tap_major(difference)
        self.width = (temporal or difference)[0].shape[0]

    def forward(self, h: Tensor, u: Tensor) -> None:
        """Write u of h."""
        nothing = h.new_empty(0, dtype=torch.float32)
        taps = (*(self.temporal or [nothing] * 2), *(self.difference or [nothing] * 3))
        config, (programs, *blocks) = self._launch(h, backward=False)
        mixer_forward_kernel[programs,](
            h,
            u,
            *taps,
            *blocks,
            self.geometry.num_frames,
            h.shape[1],
            *self.geometry.grid,
            self.width,
            h.shape[2],
            TEMPORAL=bool(self.temporal),
            DIFFERENCE=bool(self.difference),
            SHARED=self.shared,
            CLASS=int(self.geometry.class_token),
            BLOCK_P=config.tokens,
            BLOCK_C=config.channels,
            num_warps=config.warps,
        )

    def backward(self, h: Tensor, du: Tensor, u: Tensor | None, dh: Tensor) -> list[Tensor]:
        """Write dh, and u once more unless it is None; return the fp32 gradients.

        They are those of TE's conv_weight, conv_bias and down-projection bias, then the same of TD; a branch that is
        off has none.
        """
        config, (programs, *blocks) = self._launch(h, backward=True)
        sums = torch.empty(programs // blocks[0], SUMS, self.width, dtype=torch.float32, device=h.device)
        sizes = (*blocks, self.geometry.num_frames, h.shape[1])
        tiles = {"BLOCK_P": config.tokens, "BLOCK_C": config.channels, "num_warps": config.warps}
        mix, gradients = u is not None, []
        u = dh if u is None else u
        if self.temporal:
            tensors = (h, du, u, dh, *self.temporal, sums)
            temporal_backward_kernel[programs,](*tensors, *sizes, self.width, h.shape[2], MIX=mix, **tiles)
        if self.difference:
            column = self.width if self.temporal and not self.shared else 0
            tensors = (*(tensor[..., column:] for tensor in (h, du, u, dh)), *self.difference, sums)
            difference_backward_kernel[programs,](
                *tensors,
                *sizes,
                *self.geometry.grid,
                self.width,
                h.shape[2],
                MIX=mix,
                ADD=self.shared and bool(self.temporal),
                CLASS=int(self.geometry.class_token),
                **tiles,
            )
        total = sums.sum(dim=0)
        if self.temporal:
            gradients += [total[:3].t().reshape(self.width, 1, 3), total[3], total[4]]
        if self.difference:
            taps, _, down_bias = self.difference
            reach = total[15:24]
            weight = (total[5:14] + down_bias * reach).t().reshape(self.width, 1, 3, 3)
            gradients += [weight, total[14], (taps * reach).sum(dim=0)]
        return gradients

    def _launch(self, h: Tensor, backward: bool) -> tuple[MixerConfig, tuple[int, int, int]]:
        """Configuration, and the programs with their blocks of channels and of tokens."""
        frames, tokens, _ = h.shape
        config = mixer_config(self.width, h.element_size(), backward)
        blocks_c, blocks_p = triton.cdiv(self.width, config.channels), triton.cdiv(tokens, config.tokens)
        return config, (blocks_c * blocks_p * (frames // self.geometry.num_frames), blocks_c, blocks_p)


def _tap_major(tensors: list[Tensor]) -> list[Tensor]:
    """Convolution weights as (taps, R), and the vectors beside them, all in fp32."""
    if not tensors:
        return []
    weight, *rest = (tensor.float() for tensor in tensors)
    return [weight.flatten(1).t().contiguous(), *(tensor.contiguous() for tensor in rest)]
