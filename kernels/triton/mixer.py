"""The mixer of the TED-Adapter on a GPU: launches of its kernels and their configurations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import Branches, Geometry
from .device import tuned
from .mixer_backward_kernels import mixer_backward_kernel, mixer_gradients_kernel
from .mixer_kernels import mixer_forward_kernel

SUMS = 16  # rows of weight gradients: three taps, du and dh of TE, nine taps, du and the bias under them of TD


class MixerConfig(NamedTuple):
    """Tile of a program: tokens, channels, warps; and how many tiles of a clip a backward program sums over."""

    tokens: int
    channels: int
    warps: int
    tiles: int = 1


def mixer_config(width: int, itemsize: int, backward: bool) -> MixerConfig:
    """The static rule: 32 tokens of 32 channels, eight values a thread, or four where eleven sums belong to each.

    Tokens decide how often a value is read from the cache: a tile of P consecutive tokens needs P + 2 (W + 1) of them
    in a grid W wide. More values a thread leave no registers for a second program. Four tiles a backward program keep
    the partial sums under a hundredth of what it reads and writes.
    """
    channels = min(32, triton.next_power_of_2(width))
    if width * itemsize % 16:  # rows begin anywhere, and values are read one by one
        return MixerConfig(256 // channels, channels, 4, 8 if backward else 1)
    return MixerConfig(32, channels, 8, 4) if backward else MixerConfig(32, channels, 4)


def mixer_candidates(width: int, itemsize: int, backward: bool) -> list[MixerConfig]:
    """What a tuner may try, the static rule's first: other shapes of a tile with no more values a thread."""
    rule = mixer_config(width, itemsize, backward)
    if width * itemsize % 16:
        return [rule]
    wide = min(64, triton.next_power_of_2(width))
    if backward:
        tiles = [(32, rule.channels, 8), (16, rule.channels, 4), (16, wide, 8)]
        others = [MixerConfig(*tile, steps) for tile in tiles for steps in (2, 4, 8)]
    else:
        tiles = [(64, rule.channels, 8), (32, rule.channels, 8), (16, wide, 4), (32, wide, 8), (64, rule.channels, 4)]
        others = [MixerConfig(*tile) for tile in tiles]
    return list(dict.fromkeys([rule, *others]))


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
        self.temporal = [tensor.contiguous() for tensor in temporal]
        self.difference = [tensor.contiguous() for tensor in difference]
        self.width = (temporal or difference)[0].shape[0]

    @classmethod
    def of(cls, branches: Branches, geometry: Geometry) -> Mixer:
        """The mixer of an adapter's weights."""
        return cls(branches.temporal[2:4], branches.difference_arguments(), branches.shared, geometry)

    def forward(self, h: Tensor, u: Tensor, config: MixerConfig | None = None) -> None:
        """Write u of h: each value is read once from memory and written once."""
        config = config or self._config(h, backward=False)
        blocks_c, blocks_p = self.blocks(config.channels), triton.cdiv(h.shape[1], config.tokens)
        mixer_forward_kernel[blocks_c * blocks_p * self._clips(h),](
            h,
            u,
            *self.weights(h),
            blocks_c,
            blocks_p,
            *self.sizes(h),
            **self.switches(),
            BLOCK_P=config.tokens,
            BLOCK_C=config.channels,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )

    def backward(
        self, h: Tensor, du: Tensor, dh: Tensor, need_w: bool = True, config: MixerConfig | None = None
    ) -> list[Tensor]:
        """Write dh; return gradients in the dtypes of their weights, none unless they are needed.

        They are those of TE's conv_weight, conv_bias and down-projection bias, then the same of TD; a branch that is
        off has none, and a down-projection that is shared has one, among TE's. du is read once and, where gradients
        are needed, h; shared columns are gone through twice.
        """
        config = config or self._config(h, backward=True)
        blocks_c, groups = self.blocks(config.channels), triton.cdiv(h.shape[1], config.tokens * config.tiles)
        rows = groups * self._clips(h)
        sums = torch.empty(rows if need_w else 0, SUMS, self.width, dtype=torch.float32, device=h.device)
        te_taps, _, td_taps, _, down_bias = self.weights(h)
        mixer_backward_kernel[blocks_c * rows,](
            h,
            du,
            dh,
            te_taps,
            td_taps,
            down_bias,
            sums,
            blocks_c,
            groups,
            *self.sizes(h),
            **self.switches(),
            WEIGHTS=need_w,
            BLOCK_P=config.tokens,
            BLOCK_C=config.channels,
            TILES=config.tiles,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )
        return self._gradients(sums) if need_w else []

    def weights(self, h: Tensor) -> list[Tensor]:
        """TE's taps and bias, TD's taps, bias and down-projection bias; of a branch that is off, what is not read."""
        return [*(self.temporal or [h] * 2), *(self.difference or [h] * 3)]

    def sizes(self, h: Tensor) -> tuple[int, ...]:
        """Frames, tokens, height and width of the grid, R, C."""
        return self.geometry.num_frames, h.shape[1], *self.geometry.grid, self.width, h.shape[2]

    def switches(self) -> dict[str, Any]:
        """The kernels' constants."""
        branches = {"TEMPORAL": bool(self.temporal), "DIFFERENCE": bool(self.difference)}
        class_token, patches_only = self.geometry[2:]
        return branches | {"SHARED": self.shared, "CLASS": int(class_token), "PATCHES_ONLY": patches_only}

    def blocks(self, channels: int) -> int:
        """Blocks of so many channels: two branches in columns of their own have theirs each."""
        apart = bool(self.temporal) and bool(self.difference) and not self.shared
        return triton.cdiv(self.width, channels) * (2 if apart else 1)

    def _config(self, h: Tensor, backward: bool) -> MixerConfig:
        """What was measured on the device of h, or else the static rule's tile."""
        question = self.width, h.element_size(), backward
        return tuned("mixer", mixer_config(*question), h.device, *question)

    def _clips(self, h: Tensor) -> int:
        return h.shape[0] // self.geometry.num_frames

    def _gradients(self, sums: Tensor) -> list[Tensor]:
        temporal = [torch.empty_like(self.temporal[i]) for i in (0, 1, 1) if self.temporal]
        last = (0, 1) if self.shared else (0, 1, 2)
        difference = [torch.empty_like(self.difference[i]) for i in last if self.difference]
        columns = min(32, triton.next_power_of_2(self.width))
        mixer_gradients_kernel[triton.cdiv(SUMS * self.width, columns),](
            sums,
            *(temporal or [sums] * 3),
            *[*difference, sums, sums, sums][:3],
            sums.shape[0],
            self.width,
            TEMPORAL=bool(temporal),
            DIFFERENCE=bool(difference),
            SHARED=self.shared,
            BLOCK_M=64,
            BLOCK_C=columns,
        )
        return temporal + difference
