"""open_clip's own text transformer, as CLIP, SigLIP, CLIPA and CoCa have it, and text models of the hub as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.towers.parts import Text, TextStem
from m2clip.towers.sources.open_clip_vit import open_clip_blocks


class OpenClipText(TextStem):
    """What is around the blocks of an `open_clip.transformer.TextTransformer`, or of an `open_clip.CLIP`'s text side.

    Args:
        text: the module that has its parts.
        pool_type: which token it reads.
        causal: whether its attention is.
    """

    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter | nn.Linear | None
    cls_emb: nn.Parameter | None

    def __init__(self, text: Any, pool_type: str, causal: bool) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.ln_final, self.text_projection = text.ln_final, text.text_projection
        self.cls_emb = getattr(text, "cls_emb", None)
        self.context_length: int = text.context_length
        self.vocab_size: int = text.token_embedding.num_embeddings
        self.width: int = text.token_embedding.embedding_dim
        self.causal = causal
        if pool_type == "eos":
            self.end = text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
        self.pad_id, self.class_mask = getattr(text, "pad_id", 0), getattr(text, "correct_cls_mask", False)
        self.pads_are_hidden = getattr(text, "use_pad_mask", False)
        if self.cls_emb is not None:
            self.padded, self.read = True, self.context_length
            self.facts = {"text_pooling": "appended"}
        elif pool_type in ("last", "first") or not causal:
            self.padded, self.read = True, {"last": self.context_length - 1, "first": 0}.get(pool_type)
            self.facts = {"text_pooling": pool_type, "text_causal": causal}
        projection = self.text_projection
        if projection is None:
            self.feature_width = self.width
        else:
            self.feature_width = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.ln_final.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        assert self.token_embedding is not None
        x = self.token_embedding(tokens)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], dim=1)
        return (x + self.positional_embedding[: x.shape[1]]).to(self.dtype)

    def visible(self, tokens: Tensor) -> Tensor | None:
        if self.cls_emb is None and not self.pads_are_hidden:
            return None
        words = tokens != self.pad_id
        if self.cls_emb is None:
            return words
        # Published weights were trained with the place of the class token in front, though it is at the end.
        always = torch.ones_like(words[:, :1])
        return torch.cat([words, always] if self.class_mask else [always, words], dim=1)

    def project(self, hidden: Tensor) -> Tensor:
        hidden = self.ln_final(hidden)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(hidden)
        return hidden if self.text_projection is None else hidden @ self.text_projection


class HubText(TextStem):
    """A text model of the Hugging Face hub in a CLIP of open_clip: one whole, which tells a prompt's meaning.

    Args:
        text: an `open_clip.hf_model.HFTextEncoder`.
        context_length: to which prompts are padded.
    """

    def __init__(self, text: Any, context_length: int) -> None:
        super().__init__()
        self.encoder, self.proj, self.token_embedding = text.transformer, text.proj, None
        self.pooler = text.pooler
        self.pad_id: int = text.config.pad_token_id
        self.context_length, self.vocab_size = context_length, text.vocab_size
        self.width = self.encoder.get_input_embeddings().embedding_dim
        layers = [layer for layer in self.proj.modules() if isinstance(layer, nn.Linear)]
        self.feature_width = layers[-1].out_features if layers else self.width
        self.padded, self.causal, self.read = True, False, 0
        self.facts = {"text_model": text.config.model_type}

    def embed(self, tokens: Tensor) -> Tensor:
        mask = (tokens != self.pad_id).long()
        return self.pooler(self.encoder(input_ids=tokens, attention_mask=mask), mask)[:, None]

    def project(self, hidden: Tensor) -> Tensor:
        return self.proj(hidden)


def open_clip_text(clip: Any) -> Text | None:
    """Take the text side of an open_clip model apart; None for something else."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    if hasattr(clip, "text_pool_type"):  # an open_clip.CLIP, which has the parts of its text side as its own
        # It remembers the pooling, and a buffer tells whether attention is causal.
        return _opened(clip, clip.text_pool_type, clip.attn_mask is not None)
    text = getattr(clip, "text", None)
    if isinstance(text, TextTransformer):
        return _opened(text, text.pool_type, text.attn_mask is not None)
    if isinstance(text, HFTextEncoder):
        # Where open_clip is not told how long prompts are, it pads them to this.
        return Text(HubText(text, getattr(clip, "m2clip_context_length", 77)), ())
    return None


def _opened(text: Any, pool_type: str, causal: bool) -> Text:
    if pool_type not in ("argmax", "eos", "last", "first"):
        raise InputError(f"a text transformer that pools by {pool_type!r} is not supported")
    return Text(OpenClipText(text, pool_type, causal), open_clip_blocks(text.transformer))
