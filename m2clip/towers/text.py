"""CLIP's text tower, opened: hidden states at the positions that are read, in two passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.towers.block import Tower
from m2clip.towers.parts import TextStem
from m2clip.towers.sources import open_text


class TextTower(Tower):
    """A text transformer, reading hidden states at chosen positions.

    Args:
        clip: what :func:`m2clip.towers.sources.open_text` takes; its text weights are shared and frozen.
        adapters: per block index (0-based) the adapters by place, see :class:`Block`; those before a half take tokens.

    The forward pass is cut in two at the first adapter: :meth:`frozen_part` depends on the tokens alone and may be
    cached, :meth:`adapted_part` is what training changes.

    Raises:
        InputError: a text model that cannot be taken apart.
    """

    stem: TextStem

    def __init__(self, clip: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        self.stem, blocks = open_text(clip)
        self.add_blocks(blocks, adapters)

    @property
    def width(self) -> int:
        """D, of the tokens."""
        return self.stem.width

    @torch.no_grad()
    def frozen_part(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states in front of the first adapter; a constant of the tokens.

        Args:
            tokens: token ids (N, S), S up to the context length; prompts may be cut behind their longest where
                attention is causal and no padding is read.
            positions: (N, K), which positions are read after the last block.

        Returns:
            (N, S, D), or (N, K, D) where the last block's attention is part of it.
        """
        x, visible = self.stem.embed(tokens), self.stem.visible(tokens)
        for i in range(self.first_adapted):
            x = self.blocks[i].mlp_half(self._attention(i, x, positions, visible)[2])
        return self._attention(self.first_adapted, x, positions, visible)[2] if self._attention_is_frozen else x

    def adapted_part(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Last-block hidden states (N, K, D), before the final norm, of what :meth:`frozen_part` returned."""
        visible = self.stem.visible(tokens)
        for i in range(self.first_adapted, len(self.blocks)):
            hidden = self.keep_or_recompute(i, self._adapted_block, i, hidden, positions, visible)
        return hidden

    def _adapted_block(self, index: int, hidden: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
        block: Any = self.blocks[index]
        x = queries = mixed = hidden
        if index > self.first_adapted or not self._attention_is_frozen:
            x, queries, mixed = self._attention(index, self.adapt(block.pre_attn, hidden), positions, visible)
        hidden = block.mlp_half(self.adapt(block.pre_mlp, mixed))
        if block.parallel is not None and self.switch.on:
            hidden = block.beside(x, queries, hidden, None)
        return hidden

    @property
    def _attention_is_frozen(self) -> bool:
        """Whether the first adapter comes after its block's attention, which is then part of the frozen part."""
        if self.first_adapted == len(self.blocks):
            return False
        first = self.blocks[self.first_adapted]
        return first.pre_attn is None and first.parallel is None

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Last-block hidden states (N, K, D) at the positions (N, K) of token ids (N, S)."""
        return self.adapted_part(self.frozen_part(tokens, positions), tokens, positions)

    def project(self, hidden: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of last-block hidden states (..., D)."""
        return self.stem.project(hidden)

    def _attention(
        self, index: int, x: Tensor, positions: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens that are read after a block: its input, that after ln_1, and x + MSA(LN(x))."""
        block, causal = self.blocks[index], self.stem.causal
        normalised = block.ln_1(x)
        if index < len(self.blocks) - 1:
            mask = None
            if visible is not None:
                mask = visible[:, None, None]
                if causal:
                    mask = mask & torch.ones(2 * x.shape[1:2], dtype=torch.bool, device=x.device).tril()
            mixed = block.attend(normalised, normalised, causal=causal and mask is None, mask=mask)
            return x, normalised, x + block.ls_1(mixed)
        mask = positions[:, None, :, None] >= torch.arange(x.shape[1], device=x.device) if causal else None
        if visible is not None:
            mask = visible[:, None, None] if mask is None else mask & visible[:, None, None]
        queries, x = gather_tokens(normalised, positions), gather_tokens(x, positions)
        return x, queries, x + block.ls_1(block.attend(queries, normalised, mask=mask))


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens (N, K, D) of x (N, S, D) at the positions (N, K)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))
