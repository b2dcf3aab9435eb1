"""The mixer of the TED-Adapter on a GPU: launches of its kernels and their configurations."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..operands import Branches, Geometry, MixerWeights
from .device import config_or_rule
from .mixer_backward_kernels import difference_backward_kernel, mixer_gradients_kernel, temporal_backward_kernel
from .mixer_kernels import difference_forward_kernel, temporal_forward_kernel
from .ted_weights import Joined, Tables
from .tiles import Layout

TEMPORAL_SUMS, DIFFERENCE_SUMS = 5, 11  # rows of partial sums: taps, bias, bias of the down-projection


class MixerConfig(NamedTuple):
    """Tile of a program: tokens, channels, warps; how many adjacent patches of a row a thread holds, and how many
    registers it may take, 0 for any number."""

    tokens: int
    channels: int
    warps: int
    adjacent: int = 1
    registers: int = 0


def mixer_config(width: int, itemsize: int, branch: str, backward: bool) -> MixerConfig:
    """The static rule of a kernel, of the "temporal" or "difference" branch or of both in "shared" columns: tiles of 32
    tokens and 32 channels.

    Tokens decide how often a value is read from the cache: a tile of P consecutive tokens needs P + 2 (W + 1) of them
    in a grid W wide. Channels of a thread decide how many registers it takes, nine for taps and nine for sums each. Two
    patches beside each other share twelve of their eighteen neighbours.
    """
    channels = min(32, triton.next_power_of_2(width))
    tokens = 256 // channels if width * itemsize % 16 else 32  # rows that begin anywhere are read one by one
    if branch == "temporal":
        return MixerConfig(tokens, channels, 8 if backward else 4)
    if branch == "shared" and backward:
        return MixerConfig(min(tokens, 16), channels, 4, 2)  # the most registers: smaller programs fill the rest
    if backward:  # two programs of eight warps have 128 registers a thread, which wider values would not fit into
        return MixerConfig(tokens, channels, 8, 2, 128 if itemsize == 2 else 0)
    warps = 8 if branch == "difference" and itemsize == 4 else 4  # three programs of eight have 80 registers a thread
    return MixerConfig(tokens, channels, warps, 2)


def mixer_candidates(width: int, itemsize: int, branch: str, backward: bool) -> list[MixerConfig]:
    """What a tuner may try, the static rule's first: other shapes of a tile, and more or fewer channels a thread."""
    rule = mixer_config(width, itemsize, branch, backward)
    if width * itemsize % 16:
        return [rule]
    wide = min(64, triton.next_power_of_2(width))
    free = rule._replace(registers=0)
    others = [free._replace(tokens=rule.tokens // 2, channels=wide), free._replace(warps=8)]
    others += [free._replace(tokens=2 * rule.tokens, warps=8), free._replace(tokens=rule.tokens // 2, warps=4)]
    if branch != "temporal":
        others.append(free._replace(tokens=64, warps=8, adjacent=4))
    return list(dict.fromkeys([rule, *others]))


class Mixer(MixerWeights):
    """The mixer on a GPU, of weights in any dtype."""

    @functools.cached_property
    def tables(self) -> Tables:
        """The weights as the kernels read them."""
        return Tables.of(self.temporal, self.difference)

    def forward(self, h: Tensor, u: Tensor, config: MixerConfig | None = None) -> None:
        """Write u of h: each value is read once from memory and written once.

        Args:
            h: (B*T, L, C), contiguous.
            u: memory like h.
            config: tile of every branch's kernel; by default what was measured on this GPU, or else the static rule's.
        """
        tables = self.tables
        if self.temporal and not self.shared:
            tile = config or self._config(h, "temporal", backward=False)
            blocks = triton.cdiv(h.shape[1], tile.tokens)
            temporal_forward_kernel[self._programs(h, tile, blocks),](
                h, u, tables.temporal, blocks, *self.frames(h), **self._constants(h, tile, False)
            )
        if self.difference:
            tile = config or self._config(h, self._patches, backward=False)
            blocks = self._groups(tile)
            difference_forward_kernel[self._programs(h, tile, blocks),](
                h,
                u,
                tables.temporal if self.shared else None,
                tables.difference,
                blocks,
                *self.frames(h),
                *self.geometry.grid,
                **self._constants(h, tile, True),
            )

    def backward(
        self,
        h: Tensor,
        du: Tensor,
        dh: Tensor,
        u: Tensor | None = None,
        need_w: bool = True,
        config: MixerConfig | None = None,
    ) -> list[Tensor]:
        """Write dh and, where u is given, u of h once more: du is read once, and h where it is needed.

        Args:
            h: (B*T, L, C), contiguous.
            du: gradient of u.
            dh: memory like h.
            u: memory like h, or None.
            need_w: whether the weights' gradients are needed.
            config: as in `forward`.

        Returns:
            Gradients in the dtypes of their weights, none unless they are needed.
        """
        tables = self.tables
        parts: list[Tensor | None] = [None, None]
        if self.temporal and not self.shared:
            tile = config or self._config(h, "temporal", backward=True)
            blocks = triton.cdiv(h.shape[1], tile.tokens)
            parts[0] = self._sums(h, blocks, TEMPORAL_SUMS) if need_w else None
            temporal_backward_kernel[self._programs(h, tile, blocks),](
                h,
                du,
                dh,
                u,
                tables.temporal,
                parts[0],
                blocks,
                *self.frames(h),
                **self._constants(h, tile, False),
            )
        if self.difference:
            tile = config or self._config(h, self._patches, backward=True)
            blocks = self._groups(tile)
            rows = DIFFERENCE_SUMS + (TEMPORAL_SUMS - 1 if self.shared else 0)
            parts[1] = self._sums(h, blocks, rows) if need_w else None
            difference_backward_kernel[self._programs(h, tile, blocks),](
                h,
                du,
                dh,
                u,
                tables.temporal if self.shared else None,
                tables.difference,
                self.difference[2],
                parts[1],
                blocks,
                *self.frames(h),
                self.geometry.num_frames * h.shape[1] * h.shape[2],
                *self.geometry.grid,
                EVEN=self.geometry.grid[1] % 2 == 0,
                **self._constants(h, tile, True),
            )
        return self._gradients(*parts) if need_w else []

    def layout(self, h: Tensor) -> Layout:
        """The kernels' constants."""
        return Layout(self.width, h.shape[2], int(self.geometry.class_token), self.geometry.patches_only)

    def frames(self, h: Tensor) -> tuple[int, int]:
        """Frames of a clip, tokens of a frame."""
        return self.geometry.num_frames, h.shape[1]

    def tiles(self, h: Tensor, tile: MixerConfig) -> tuple[int, int]:
        """Tiles of a clip: of the temporal branch in columns of its own, and all."""
        blocks_c = triton.cdiv(self.width, tile.channels)
        temporal = blocks_c * triton.cdiv(h.shape[1], tile.tokens) if self.temporal and not self.shared else 0
        return temporal, temporal + (blocks_c * self._groups(tile) if self.difference else 0)

    @property
    def _patches(self) -> str:
        """The branch that the kernel for the difference branch's columns computes."""
        return "shared" if self.shared else "difference"

    def _config(self, h: Tensor, branch: str, backward: bool) -> MixerConfig:
        """What was measured on the device of h, or else the static rule's tile."""
        question = self.width, h.element_size(), branch, backward
        return config_or_rule("mixer", mixer_config(*question), h.device, *question)

    def _groups(self, tile: MixerConfig) -> int:
        """Blocks of groups of patches in a frame."""
        height, width = self.geometry.grid
        return triton.cdiv(height * triton.cdiv(width, tile.adjacent), tile.tokens // tile.adjacent)

    def _programs(self, h: Tensor, tile: MixerConfig, blocks: int) -> int:
        return triton.cdiv(self.width, tile.channels) * blocks * self._clips(h)

    def _clips(self, h: Tensor) -> int:
        return h.shape[0] // self.geometry.num_frames

    def _constants(self, h: Tensor, tile: MixerConfig, groups: bool) -> dict[str, object]:
        """Constants of a launch on tokens, or on groups of patches."""
        block = {"BLOCK_G": tile.tokens // tile.adjacent, "ADJACENT": tile.adjacent}
        launch = {"num_warps": tile.warps, "maxnreg": tile.registers or None, "enable_fp_fusion": True}
        own = block if groups else {"BLOCK_P": tile.tokens}
        return {"LAYOUT": self.layout(h), "BLOCK_C": tile.channels, **own, **launch}

    def _sums(self, h: Tensor, blocks: int, count: int) -> Tensor:
        return torch.empty(blocks * self._clips(h), count, self.width, dtype=torch.float32, device=h.device)

    def _gradients(self, temporal_sums: Tensor | None, difference_sums: Tensor | None) -> list[Tensor]:
        both = self.temporal, self.difference  # the last of either has the shape of the down-projection's bias
        temporal, difference = ([torch.empty_like(part[i]) for i in (0, 1, -1) if part] for part in both)
        columns = min(32, triton.next_power_of_2(self.width))
        parts = [part for part in (temporal_sums, difference_sums) if part is not None]
        mixer_gradients_kernel[sum(triton.cdiv(part[0].numel(), columns) for part in parts),](
            temporal_sums,
            difference_sums,
            (*temporal[:2], None if self.shared else temporal[2]) if temporal else None,
            tuple(difference) or None,
            *(0 if part is None else len(part) for part in (temporal_sums, difference_sums)),
            self.width,
            SHARED=self.shared,
            BLOCK_M=64,
            BLOCK_C=columns,
        )
        if self.shared:
            temporal[2] = difference.pop()
        return temporal + difference


def prepared(branches: Branches, geometry: Geometry, dtype: torch.dtype) -> tuple[Mixer, Joined]:
    """The mixer of an adapter, and the weights of its projections in this dtype: one launch prepares both."""
    mixer = Mixer.of(branches, geometry)
    joined, mixer.tables = Joined.of(branches, mixer.temporal, mixer.difference, dtype)
    return mixer, joined
