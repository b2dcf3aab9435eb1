"""MA-FSAR's vision tower: frozen attention over the class tokens of a clip, and over a frame's tokens with two more.

The clips that come with a text are the support videos of an episode, those without are its queries. Both are computed
together except for the attention within frames, whose sequences differ by the text token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.adapters.ma_fsar import MultimodalAdapters
from m2clip.towers.block import Block
from m2clip.towers.vision import TimedVisionTower

PLACE = "multimodal"  # of a block's MultimodalAdapters


class MultimodalBlock(Block):
    """A frozen block around :class:`m2clip.adapters.ma_fsar.MultimodalAdapters`. Source: MA-FSAR, Fig. 3."""

    adapters: Any  # MultimodalAdapters, or None

    def __init__(self, block: Any, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__(block, adapters)
        self.adapters = adapters.get(PLACE)

    def forward(self, x: Tensor, frames: int, text: Tensor | None, last: bool) -> Tensor:
        """The adapted block.

        Args:
            x: tokens (V*T, L, D) of V clips, their class tokens first.
            frames: T.
            text: features (S, D_vl) of the classes of the first S clips, the support videos; None for none.
            last: compute the class tokens alone, which are all that is read after the last block.

        Returns:
            (V*T, L, D), or (V*T, 1, D) in the last block.
        """
        adapters: MultimodalAdapters = self.adapters
        normalised = self.ln_1(x)
        extra: list[Tensor] = []
        if adapters.temporal is not None:
            clip_tokens = self.over_time(x, normalised, frames)
            extra = [self.ln_1(clip_tokens)]
            if adapters.layout.write_back:
                x = torch.cat([clip_tokens, x[:, 1:]], dim=1)
                normalised = torch.cat([*extra, normalised[:, 1:]], dim=1)
        # Only what stays asks: the tokens that were added are read by the others, and discarded. The norm is one token
        # at a time, so that it can be taken before the tokens are put together.
        queries = normalised
        if last:
            x, queries = x[:, :1], normalised[:, :1]
        mixed = self.within_frames(queries, torch.cat([normalised, *extra], dim=1), frames, text)
        x = x + (mixed if adapters.local is None else adapters.local(mixed))
        y = self.ln_2(x)
        x = x + self.feed_forward(y)
        return x if adapters.joint is None else x + adapters.joint(y)

    def over_time(self, x: Tensor, normalised: Tensor, frames: int) -> Tensor:
        """A token of each frame (V*T, 1, D) that has seen the class tokens of its clip's other frames."""
        adapters = self.adapters
        classes = normalised[:, 0].unflatten(0, (-1, frames))
        if adapters.temporal_in is not None:
            classes = adapters.temporal_in(classes)
        seen = adapters.temporal(self.ls_1(self.attend(classes, classes, placed=False))).flatten(0, 1)[:, None]
        return x[:, :1] + seen if adapters.layout.temporal_residual else seen

    def within_frames(self, queries: Tensor, context: Tensor, frames: int, text: Tensor | None) -> Tensor:
        """Attention of tokens (V*T, Q, D) over those of their frame, for the first clips with their text's token."""
        tokens = None if text is None else self.adapters.text_tokens(text, context.dtype)
        if tokens is None:
            return self.ls_1(self.attend(queries, context))
        support = len(tokens) * frames
        of_frames = self.ln_1(tokens)[:, None, None].expand(-1, frames, -1, -1).flatten(0, 1)
        mixed = [self.attend(queries[:support], torch.cat([context[:support], of_frames], dim=1))]
        if support < len(queries):
            mixed.append(self.attend(queries[support:], context[support:]))
        return self.ls_1(torch.cat(mixed))


class MultimodalVisionTower(TimedVisionTower):
    """A vision transformer over frames whose adapted blocks see the clip's time and, in support videos, its text.

    Args:
        visual: see :class:`TimedVisionTower`.
        num_frames: see there.
        adapters: per block index (0-based) ``{PLACE: MultimodalAdapters}``.
    """

    block_type = MultimodalBlock

    def forward(self, video: Tensor, text: Tensor | None = None) -> Tensor:
        """Pooled tokens (V, T, D_p) after the last block, of normalised clips (V, T, 3, H, W).

        Args:
            video: (V, T, 3, H, W).
            text: features (S, D_vl) of the classes of the first S clips, see :meth:`MultimodalBlock.forward`.
        """
        frames = video.shape[1]
        last = len(self.blocks) - 1 if self.stem.reads_class_token else None
        x = self.embed_clips(video)
        for i, block in enumerate(self.blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_adapted):
                if block.adapters is not None and self.switch.on:
                    x = self.keep_or_recompute(i, block, x, frames, text, i == last)
                else:
                    x = self.keep_or_recompute(i, self._block, block, x, frames, i == last)
        return self.stem.pool(x).unflatten(0, (-1, frames))
