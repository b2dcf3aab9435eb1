"""Vision transformers of timm inside of open_clip's models: SigLIP, EVA, PE-Core, MobileCLIP-B, ViTamin and others."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.towers.attention import TimmAttention, timm_attention_problem
from m2clip.towers.parts import BlockParts, Scale, Vision, VisionStem


class TimmVision(VisionStem):
    """What is around the blocks of a timm `VisionTransformer` or `Eva`.

    Args:
        visual: an `open_clip.timm_model.TimmModel`.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk
        # The model without its blocks and its head: of the same weights, with its functions for what is around blocks.
        self.trunk: Any = copy.copy(trunk)
        apart = ("blocks", "norm", "fc_norm", "head", "patch_drop", "rope")
        self.trunk._modules = {name: child for name, child in trunk._modules.items() if name not in apart}
        self.trunk.patch_drop = self.trunk.rope = None  # patches are dropped in pre-training alone
        self.reads_class_token = trunk.global_pool == "token" and trunk.attn_pool is None
        self.ln_tokens, self.ln_post = trunk.norm, trunk.fc_norm
        if self.reads_class_token and isinstance(trunk.fc_norm, nn.Identity):
            # One token at a time, so that the norm may come after the choice.
            self.ln_tokens, self.ln_post = trunk.fc_norm, trunk.norm
        self.head = nn.Sequential(trunk.head, visual.head)
        self.image_size, self.grid = tuple(trunk.patch_embed.img_size), tuple(trunk.patch_embed.grid_size)
        height, width = (size // max(count, 1) for size, count in zip(self.image_size, self.grid, strict=True))
        self.patch_size = (height, width)
        self.num_prefix_tokens = trunk.num_prefix_tokens
        self.width = self.pooled_width = trunk.embed_dim
        layers = [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)]
        self.feature_width = layers[-1].out_features if layers else self.pooled_width
        self.facts = {"vision_model": type(trunk).__name__, "pooling": trunk.global_pool}

    def embed(self, images: Tensor, time: Tensor | None = None) -> Tensor:
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(images))
        if isinstance(tokens, tuple):  # with the rotary embedding, which the blocks have
            tokens = tokens[0]
        if time is not None:
            tokens = (tokens.unflatten(0, (-1, len(time))) + time[:, None].to(tokens.dtype)).flatten(0, 1)
        return self.trunk.norm_pre(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        return self.ln_tokens(tokens[:, 0]) if self.reads_class_token else self.trunk.pool(self.ln_tokens(tokens))

    def project(self, pooled: Tensor) -> Tensor:
        return self.head(self.ln_post(pooled))


def timm_vision(visual: Any) -> Vision | None:
    """Take a timm vision transformer of an open_clip model apart; None for something else."""
    from open_clip.timm_model import TimmModel

    if not isinstance(visual, TimmModel):
        return None
    problem = _problem(visual.trunk)
    if problem is not None:
        raise InputError(f"the vision model {type(visual.trunk).__name__} of timm is not supported: {problem}")
    rotary = _rotary(visual.trunk)
    return Vision(TimmVision(visual), [_parts(visual.trunk, block, rotary) for block in visual.trunk.blocks])


def _is_eva(trunk: Any) -> bool:
    from timm.models.eva import Eva

    return isinstance(trunk, Eva)


def _problem(trunk: Any) -> str | None:
    """Why a timm model cannot be taken apart; None where it can."""
    from timm.models.eva import EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(trunk, VisionTransformer) and not _is_eva(trunk):
        return "it is no plain vision transformer, with tokens of one width and blocks of attention and MLP"
    if getattr(trunk, "rope_mixed", False) or trunk.dynamic_img_size:
        return "its position embedding is another one in each block or for each image"
    for block in trunk.blocks:
        if type(block) not in (Block, EvaBlock, EvaBlockPostNorm):
            return f"its blocks are of type {type(block).__name__}"
        problem = timm_attention_problem(block.attn)
        if problem is not None:
            return problem
    return None


def _rotary(trunk: Any) -> Tensor | None:
    """The rotary embedding of a model's grid, (H*W, 2 * head width); None where it has none."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    return rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)


def _parts(trunk: Any, block: Any, rotary: Tensor | None) -> BlockParts:
    from timm.layers import Mlp
    from timm.models.eva import EvaBlock, EvaBlockPostNorm

    if isinstance(block, EvaBlockPostNorm):
        norms = (nn.Identity(), block.norm1, nn.Identity(), block.norm2)
    elif isinstance(block, EvaBlock):
        scales = (nn.Identity() if gamma is None else Scale(gamma) for gamma in (block.gamma_1, block.gamma_2))
        norms = (block.norm1, next(scales), block.norm2, next(scales))
    else:
        norms = (block.norm1, block.ls1, block.norm2, block.ls2)
    plain = type(block.mlp) is Mlp and isinstance(block.mlp.norm, nn.Identity)
    return BlockParts(
        ln_1=norms[0],
        attn=block.attn,
        ls_1=norms[1],
        ln_2=norms[2],
        mlp=block.mlp,
        ls_2=norms[3],
        num_heads=block.attn.num_heads,
        kind=TimmAttention(),
        mlp_names=("fc1", "act", "fc2") if plain else None,
        rotary=rotary,
        prefix=trunk.num_prefix_tokens,
    )
