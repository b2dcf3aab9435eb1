"""open_clip's own vision transformer: with a class token or an average, and with the attention pooling of CoCa."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.towers.attention import TorchAttention
from m2clip.towers.parts import BlockParts, Vision, VisionStem


class OpenClipVision(VisionStem):
    """What is around the blocks of an `open_clip.transformer.VisionTransformer`.

    Args:
        visual: it.
    """

    conv1: nn.Conv2d
    ln_pre: nn.Module
    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter
    proj: nn.Parameter | None

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.attn_pool: Any = visual.attn_pool
        # The norm is one token at a time, so that in front of a choice of tokens it is the same as behind it. In front
        # of an average it is not.
        self.averages = visual.attn_pool is None and visual.pool_type == "avg"
        self.ln_tokens = visual.ln_post if self.averages and not visual.final_ln_after_pool else None
        self.ln_post = nn.Identity() if self.ln_tokens is not None else visual.ln_post
        self.proj = visual.proj
        self.image_size, self.patch_size = tuple(visual.image_size), tuple(visual.patch_size)
        self.grid, self.num_prefix_tokens = tuple(visual.grid_size), 1
        self.width = self.pooled_width = visual.conv1.out_channels
        self.reads_class_token = visual.attn_pool is None and not self.averages
        if self.attn_pool is not None:
            self.pooled_width = self.attn_pool.query.shape[1]
        self.feature_width = self.pooled_width if self.proj is None else self.proj.shape[1]
        if not self.reads_class_token:
            self.facts = {"pooling": "average" if self.averages else "attention"}

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def embed(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(images.shape[0], 1, -1), patches], dim=1)
        if time is None:
            return self.ln_pre(tokens + self.positional_embedding)
        # Place and time are added to each other first: one pass over the tokens, as without time.
        place_and_time = (self.positional_embedding + time[:, None]).to(tokens.dtype)
        return self.ln_pre((tokens.unflatten(0, (-1, len(time))) + place_and_time).flatten(0, 1))

    def pool(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:
            # Of its many queries the first alone becomes the feature.
            context, query = self.attn_pool.ln_k(tokens), self.attn_pool.ln_q(self.attn_pool.query[:1])
            return self.attn_pool.attn(query.expand(len(tokens), 1, -1), context, context, need_weights=False)[0][:, 0]
        if not self.averages:
            return tokens[:, 0]
        return (tokens if self.ln_tokens is None else self.ln_tokens(tokens))[:, 1:].mean(dim=1)

    def project(self, pooled: Tensor) -> Tensor:
        pooled = self.ln_post(pooled)
        return pooled if self.proj is None else pooled @ self.proj


def open_clip_vision(visual: Any) -> Vision | None:
    """Take an open_clip vision transformer apart; None for something else."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        return None
    if visual.pool_type not in ("tok", "avg") or (visual.attn_pool is not None and visual.pool_type != "tok"):
        raise InputError(f"a vision transformer that pools by {visual.pool_type!r} beside attention is not supported")
    return Vision(OpenClipVision(visual), open_clip_blocks(visual.transformer))


def open_clip_blocks(transformer: Any) -> list[BlockParts]:
    """The blocks of an open_clip transformer; raises InputError for those with norms or scales of their own."""
    parts = []
    for block in transformer.resblocks:
        attention = block.attn
        if not isinstance(attention, nn.MultiheadAttention):
            raise InputError(f"transformer blocks of type {type(block).__name__} are not supported: use plain ones")
        layers = (block.ln_1, attention, block.ls_1, block.ln_2, block.mlp, block.ls_2)
        names = ("c_fc", "gelu", "c_proj")
        parts.append(BlockParts(*layers, attention.num_heads, TorchAttention(), names))
    return parts
