"""AIM's vision tower: CLIP's own frozen attention a second time, over the frames of each token position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.adapters.unimodal import AIMAdapters
from m2clip.towers.block import Block
from m2clip.towers.vision import TimedVisionTower

PLACE = "aim"  # of a block's AIMAdapters


class AIMBlock(Block):
    """A frozen block around :class:`m2clip.adapters.unimodal.AIMAdapters`. Source: AIM (ICLR 2023), Fig. 2 (e)."""

    adapters: Any  # AIMAdapters, or None

    def __init__(self, block: Any, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__(block, adapters)
        self.adapters = adapters.get(PLACE)

    def forward(self, x: Tensor, num_frames: int, last: bool) -> Tensor:
        """The adapted block on tokens (B*T, L, D); with last the class tokens alone, (B*T, 1, D)."""
        adapters: AIMAdapters = self.adapters
        over_time = self.ln_1(x)
        if adapters.temporal_in is not None:
            over_time = adapters.temporal_in(over_time)
        over_time = adapters.temporal(self.ls_1(self.attend_over_time(over_time, num_frames)))
        x = x + adapters.drop_path(over_time, num_frames)
        queries = normalised = self.ln_1(x)
        if last:
            x, queries = x[:, :1], normalised[:, :1]
        x = x + adapters.spatial(self.ls_1(self.attend(queries, normalised)))
        y = self.ln_2(x)
        joint = adapters.drop_path(adapters.joint(y), num_frames)
        return x + self.feed_forward(y) + joint

    def attend_over_time(self, x: Tensor, num_frames: int) -> Tensor:
        """Attention of each token (B*T, L, D) over the T frames at its own position.

        Tokens stay where they are: positions and heads are next to each other in memory, so that to the attention both
        together are heads, L times as many, of sequences of T. That takes queries, keys and values of their own. A
        rotary embedding turns all tokens of a position alike, so that it changes none of these products.
        """
        q, k, v = (
            y.view(-1, num_frames, x.shape[1] * self.num_heads, y.shape[-1] // self.num_heads)
            for y in self.kind.project_apart(self.attn, x, x)
        )
        q, k = self.kind.norm(self.attn, q, k)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.kind.out(self.attn, mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


class AIMVisionTower(TimedVisionTower):
    """A vision transformer whose adapted blocks attend over the frames of a clip, too.

    Args:
        visual: see :class:`TimedVisionTower`.
        num_frames: see there.
        adapters: per block index (0-based) ``{PLACE: AIMAdapters}``.
    """

    block_type = AIMBlock

    def _block(self, block: Any, x: Tensor, frames: int, last: bool) -> Tensor:
        if block.adapters is None or not self.switch.on:
            return super()._block(block, x, frames, last)
        return block(x, frames, last)
