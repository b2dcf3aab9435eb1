"""CLIP, MetaCLIP 2, SigLIP and SigLIP 2 as transformers has them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.sizes import size_text
from m2clip.towers.attention import TransformersAttention
from m2clip.towers.parts import BlockParts, Text, TextStem, Vision, VisionStem

# Names of configurations, with whether prompts are read at their end token, causally, or at their last padding.
KINDS = {"clip": True, "metaclip_2": True, "siglip": False, "siglip2": False}


class TransformersVision(VisionStem):
    """What is around the blocks of the vision model of a CLIP or SigLIP.

    Args:
        model: it, whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        vision, kind = model.vision_model, model.config.model_type
        self.embeddings = vision.embeddings
        self.of_patches = kind == "siglip2"  # whose embedding takes images cut into patches
        patch = model.config.vision_config.patch_size
        side = int(vision.embeddings.position_embedding.num_embeddings**0.5) * patch
        self.native_size = (side, side)
        self.image_size = getattr(model, "m2clip_image_size", None) or self.native_size
        self.patch_size = (patch, patch)
        self.grid = (self.image_size[0] // patch, self.image_size[1] // patch)
        self.width = self.pooled_width = vision.embeddings.embed_dim
        self.reads_class_token = KINDS[kind]
        self.num_prefix_tokens = int(self.reads_class_token)
        self.ln_pre = vision.pre_layrnorm if self.reads_class_token else nn.Identity()
        self.ln_post = vision.post_layernorm if self.reads_class_token else nn.Identity()
        self.ln_tokens = nn.Identity() if self.reads_class_token else vision.post_layernorm
        self.attn_pool: Any = None if self.reads_class_token else vision.head
        self.proj: Any = model.visual_projection if self.reads_class_token else nn.Identity()
        self.feature_width = model.visual_projection.out_features if self.reads_class_token else self.width
        self.facts = {"vision_model": type(vision).__name__}

    def embed(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        if self.of_patches:
            (height, width), (down, across) = self.patch_size, self.grid
            patches = images.unflatten(3, (across, width)).unflatten(2, (down, height))
            shapes = torch.tensor([self.grid], device=images.device).expand(len(images), 2)
            tokens = self.embeddings(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), shapes)
        else:
            tokens = self.embeddings(images, interpolate_pos_encoding=self.image_size != self.native_size)
        if time is not None:
            tokens = (tokens.unflatten(0, (-1, len(time))) + time[:, None].to(tokens.dtype)).flatten(0, 1)
        return self.ln_pre(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.attn_pool is None else self.attn_pool(self.ln_tokens(tokens))

    def project(self, pooled: Tensor) -> Tensor:
        return self.proj(self.ln_post(pooled))


class TransformersText(TextStem):
    """What is around the blocks of the text model of a CLIP or SigLIP.

    Args:
        model: it, whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        text, config = model.text_model, model.config.text_config
        self.embeddings, self.ln_final = text.embeddings, text.final_layer_norm
        self.token_embedding = text.embeddings.token_embedding
        self.causal = KINDS[model.config.model_type]
        self.proj = model.text_projection if self.causal else text.head
        self.context_length: int = config.max_position_embeddings
        self.vocab_size: int = self.token_embedding.num_embeddings
        self.width: int = self.token_embedding.embedding_dim
        self.feature_width = self.proj.out_features
        # Configurations of the first models name an id that is not their end token's; its id is the highest there.
        self.end = config.eos_token_id if self.causal and config.eos_token_id != 2 else None
        self.padded, self.read = not self.causal, None if self.causal else self.context_length - 1
        self.facts = {"text_model": type(text).__name__}

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embeddings(input_ids=tokens)

    def project(self, hidden: Tensor) -> Tensor:
        return self.proj(self.ln_final(hidden))


def transformers_vision(model: Any) -> Vision | None:
    """Take the vision side of a model of transformers apart; None for something else."""
    if not _is_ours(model):
        return None
    if not KINDS[model.config.model_type] and not model.vision_model.use_head:
        raise InputError("a SigLIP without the head of its vision model has no features of images")
    size, patch = getattr(model, "m2clip_image_size", None), model.config.vision_config.patch_size
    if size is not None and any(side % patch for side in size):
        raise InputError(f"images of {size_text(size)} are not made of patches of {size_text(patch)}")
    return Vision(TransformersVision(model), _blocks(model.vision_model))


def transformers_text(model: Any) -> Text | None:
    """Take the text side of a model of transformers apart; None for something else."""
    return Text(TransformersText(model), _blocks(model.text_model)) if _is_ours(model) else None


def _is_ours(model: Any) -> bool:
    """Whether a model is one of transformers with two towers; raises InputError for another one of transformers."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return False
    kind = model.config.model_type
    if kind not in KINDS or not (hasattr(model, "vision_model") and hasattr(model, "text_model")):
        names = ", ".join(KINDS)
        raise InputError(
            f"{type(model).__name__} of transformers is not supported: use a model of two towers of the kinds {names}"
        )
    return True


def _blocks(side: Any) -> list[BlockParts]:
    return [
        BlockParts(
            ln_1=layer.layer_norm1,
            attn=layer.self_attn,
            ls_1=nn.Identity(),
            ln_2=layer.layer_norm2,
            mlp=layer.mlp,
            ls_2=nn.Identity(),
            num_heads=layer.self_attn.num_heads,
            kind=TransformersAttention(),
            mlp_names=("fc1", "activation_fn", "fc2"),
        )
        for layer in side.encoder.layers
    ]
