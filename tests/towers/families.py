"""One small CLIP of each family, with random weights, images of 32x48 pixels in 2x3 patches, and OpenAI's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.tokenizers import byte_pairs

IMAGE, PATCH, WIDTH = (32, 48), 16, 32
_TEXT = {"context_length": 20, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
_VISION = {"image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "layers": 2, "head_width": 16}
_TIMM = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 0}
_SIGLIP_TEXT = {**_TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}


def _open_clip(vision: dict[str, Any], text: dict[str, Any], **options: Any) -> Any:
    return open_clip.CustomTextCLIP(WIDTH, {**_VISION, **vision}, {**_TEXT, **text}, **options)


def _timm(trunk: Callable[[], Any], text: dict[str, Any] = _TEXT, **options: Any) -> Any:
    """A CLIP around a vision transformer of timm, as open_clip builds it."""
    clip = _open_clip({}, text, **options)
    visual = open_clip.timm_model.TimmModel("test_vit", WIDTH, IMAGE, pool="token", proj="linear")
    visual.trunk = trunk()
    visual.head = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    clip.visual = visual
    return clip


def _eva(**options: Any) -> Any:
    from timm.models.eva import Eva

    rotary = {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False}
    return Eva(**{**_TIMM, "global_pool": "token", **rotary, **options})


def _vit(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**_TIMM, **options})


def _convolutions() -> Any:
    """Three convolutions with batch norms in front, as in MobileCLIP-B."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer_hybrid import ConvStem

    front = ConvStem(channels=(8, 16, WIDTH), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0)
    embed = partial(HybridEmbed, backbone=front, proj=False)
    return _vit(patch_size=1, embed_layer=embed, global_pool="token", no_embed_class=True)


def _transformers(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    sides = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sides,
        "vocab_size": 49408,
        "max_position_embeddings": 20,
        "projection_size": WIDTH,
        "eos_token_id": 49407,
    }
    vision = {**sides, "patch_size": PATCH, "image_size": 32, "num_patches": 4}
    names = {"clip": "CLIP", "metaclip_2": "MetaClip2", "siglip": "Siglip", "siglip2": "Siglip2"}
    config = getattr(transformers, f"{names[kind]}Config")(text_config=text, vision_config=vision, projection_dim=WIDTH)
    clip = getattr(transformers, f"{names[kind]}Model")(config)
    clip.m2clip_image_size = IMAGE
    return clip


def _hub() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.XLMRobertaConfig(vocab_size=49408, max_position_embeddings=30, pad_token_id=1, **sizes)
    clip = _open_clip({}, {})
    clip.text = open_clip.hf_model.HFTextEncoder(
        "none", WIDTH, config=config, pooler_type="mean_pooler", proj_type="mlp", pretrained=False
    )
    clip.m2clip_context_length = 20
    clip.m2clip_tokenizer = PromptTokenizer(20, start=0, end=2, pad=1, padded=True, read=0)
    return clip


def _coca() -> Any:
    decoder = {"context_length": 20, "vocab_size": 64, "width": WIDTH, "heads": 2, "layers": 1}
    vision = {
        **_VISION,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    return open_clip.CoCa(WIDTH, decoder, {**_TEXT, "embed_cls": True, "output_tokens": True}, vision)


FAMILIES: dict[str, Callable[[], Any]] = {
    "clip": lambda: _open_clip({}, {}),
    "clipa": lambda: _open_clip(
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True, "pool_type": "last"},
    ),
    "average": lambda: _open_clip({"pool_type": "avg", "ls_init_value": 0.5}, {"no_causal_mask": True}),
    "coca": _coca,
    "siglip": lambda: _timm(lambda: _vit(class_token=False, global_pool="map"), _SIGLIP_TEXT, init_logit_bias=-10),
    "eva": lambda: _timm(_eva),
    "eva_post_norm": lambda: _timm(lambda: _eva(use_post_norm=True, swiglu_mlp=False, use_rot_pos_emb=False)),
    "pe": lambda: _timm(lambda: _eva(global_pool="map", swiglu_mlp=False, use_pre_transformer_norm=True)),
    "registers": lambda: _timm(lambda: _vit(reg_tokens=4, global_pool="token", qk_norm=True)),
    "convolutions": lambda: _timm(_convolutions),
    "gap": lambda: _timm(lambda: _vit(class_token=False, global_pool="avg", fc_norm=True)),
    "hub_text": _hub,
    "transformers_clip": lambda: _transformers("clip"),
    "transformers_metaclip_2": lambda: _transformers("metaclip_2"),
    "transformers_siglip": lambda: _transformers("siglip"),
    "transformers_siglip2": lambda: _transformers("siglip2"),
}


def family(name: str) -> Any:
    """The small CLIP of a family, whose weights are far from where they start."""
    torch.manual_seed(0)
    clip = FAMILIES[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter is not clip.logit_scale and parameter is not getattr(clip, "logit_bias", None):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        clip.logit_scale.fill_(2.0)
    if not hasattr(clip, "m2clip_tokenizer"):
        clip.m2clip_tokenizer = byte_pairs(clip)
    return clip.eval()


def library_features(clip: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library itself makes of images (N, 3, height, width) and prompts."""
    if hasattr(clip, "encode_image"):
        options = {"normalize": False} if isinstance(clip, open_clip.CoCa) else {}
        return clip.encode_image(images, **options), clip.encode_text(tokens, **options)
    if clip.config.model_type == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        down, across = IMAGE[0] // PATCH, IMAGE[1] // PATCH
        seen = clip.get_image_features(
            pixel_values=torch.stack([convert_image_to_patches(image, PATCH) for image in images]),
            pixel_attention_mask=torch.ones(len(images), down * across, dtype=torch.int32),
            spatial_shapes=torch.tensor([[down, across]] * len(images)),
        )
    else:
        seen = clip.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
    return seen.pooler_output, clip.get_text_features(input_ids=tokens).pooler_output
