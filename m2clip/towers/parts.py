"""What a tower needs of a foreign model: its blocks, part by part, and what is around them.

A file of `m2clip.towers.sources` takes one family of models apart into these. It copies no weight and changes no
function of another library: the parts hold the very modules of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m2clip.towers.attention import Attention


class BlockParts(NamedTuple):
    """A transformer block: ``x + ls_1(attn(ln_1(x)))``, then ``x + ls_2(mlp(ln_2(x)))``.

    Attributes:
        ln_1: the norm before the attention; the identity where a block has its norms behind its halves.
        attn: the library's attention.
        ls_1: what is done to the attention's result: a layer scale, a norm behind it, or nothing.
        ln_2: the norm before the MLP.
        mlp: the library's MLP.
        ls_2: what is done to the MLP's result.
        num_heads: of the attention.
        kind: how attn is asked.
        mlp_names: the names in mlp of a linear layer, an activation and a linear layer, where it is no more than these;
            None for any other.
        rotary: the rotary embedding (H*W, 2 * head width) of the patch tokens; None for none.
        prefix: P, the tokens in front of the patch tokens, which are not turned.
    """

    ln_1: nn.Module
    attn: nn.Module
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module
    num_heads: int
    kind: Attention
    mlp_names: tuple[str, str, str] | None
    rotary: Tensor | None = None
    prefix: int = 0


class Scale(nn.Module):
    """Tokens times a vector that a library keeps beside its layers.

    Args:
        gamma: (D,), shared.
    """

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Stem(nn.Module):
    """What is around the blocks of one side of a CLIP. It is frozen, and computes as in evaluation in training too.

    Attributes:
        width: D, of its tokens.
        feature_width: D_vl, of the joint space.
        facts: what tells it from others of its sizes, for saved adapters; empty for open_clip's plain CLIPs.
    """

    width: int
    feature_width: int

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def train(self, mode: bool = True) -> Stem:
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are kept in."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device


class VisionStem(Stem):
    """What is around the blocks of a vision transformer.

    Attributes:
        image_size: (height, width) of the images.
        patch_size: (height, width) of a patch.
        grid: (H, W) of the patch tokens.
        num_prefix_tokens: P, the tokens in front of them.
        reads_class_token: whether token 0 is all that pooling reads, so that no other is computed in the last block.
        pooled_width: of what :meth:`pool` gives.
        ln_post: the norm between pooling and projection; the identity where there is none.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    num_prefix_tokens: int
    reads_class_token: bool
    pooled_width: int
    ln_post: nn.Module

    def embed(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        """Tokens (N, P + H*W, D) entering the first block.

        Args:
            images: (N, 3, height, width), the T frames of a clip adjacent.
            time: (T, D), added to all tokens of a frame in front of the first norm; None for nothing.
        """
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """The one token (N, D_p) that stands for a frame, of all after the last block (N, L, D)."""
        return tokens[:, 0]

    def project(self, pooled: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of pooled tokens (..., D_p)."""
        raise NotImplementedError


class TextStem(Stem):
    """What is around the blocks of a text transformer.

    Attributes:
        context_length: of its prompts.
        vocab_size: tokens of its vocabulary.
        causal: whether a token sees those in front of it alone.
        padded: whether what is read depends on the padding, so that prompts have the context length.
        read: which token is read after the last block, counted in what :meth:`embed` gives; None for the end token.
        end: id of the end token; None where it is the highest id of the vocabulary.
        token_embedding: the table of its tokens; None where they are not there one by one.
        ln_final: the norm behind the last block.
    """

    context_length: int
    vocab_size: int
    causal: bool = True
    padded: bool = False
    read: int | None = None
    end: int | None = None
    token_embedding: nn.Embedding | None
    ln_final: nn.Module

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (N, S, D) entering the first block, of token ids (N, up to the context length)."""
        raise NotImplementedError

    def visible(self, tokens: Tensor) -> Tensor | None:
        """Which tokens others may look at, (N, S) bool; None for all."""
        return None

    def project(self, hidden: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of hidden states (..., D)."""
        raise NotImplementedError


class Vision(NamedTuple):
    """A vision transformer, taken apart."""

    stem: VisionStem
    blocks: Sequence[BlockParts]


class Text(NamedTuple):
    """A text transformer, taken apart. Without blocks it is one whole, and its stem embeds a prompt as its meaning."""

    stem: TextStem
    blocks: Sequence[BlockParts]
