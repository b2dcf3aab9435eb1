"""Copies of open_clip's architectures that are two blocks deep, with random weights and few words; all else is theirs.

Widths, heads, patches, images, norms, activations, pooling, masks and projections are those of the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

DEPTH, WORDS = 2, 512


def names() -> list[str]:
    """Every architecture that the installed open_clip comes with."""
    folder = Path(open_clip.__file__).parent / "model_configs"
    return sorted(file.stem for file in folder.glob("*.json"))


def config_of(name: str) -> dict[str, Any]:
    """The configuration that open_clip comes with, as a copy."""
    return json.loads((Path(open_clip.__file__).parent / "model_configs" / f"{name}.json").read_text())


def shallow_clip(name: str, folder: Path) -> Any:
    """An architecture two blocks deep.

    Args:
        name: the architecture.
        folder: where the configuration of a text model of the hub is written.
    """
    config = config_of(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers"), int):
        vision["layers"] = DEPTH
    text |= {"layers": DEPTH, "vocab_size": WORDS}
    if "hf_model_name" in text:
        text |= {"hf_model_name": _hub_model(text["hf_model_name"], folder), "hf_model_pretrained": False}
    kind = open_clip.CLIP
    if config.pop("custom_text", False) or "hf_model_name" in text:
        kind = open_clip.CustomTextCLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
        config["multimodal_cfg"] |= {"layers": 1, "vocab_size": WORDS}
        text["vocab_size"] = config["multimodal_cfg"]["vocab_size"]
    with torch.device("meta"):
        clip = kind(**config)
    trunk = getattr(clip.visual, "trunk", None)
    if trunk is not None and hasattr(trunk, "blocks"):
        trunk.blocks = trunk.blocks[:DEPTH]
    clip.to_empty(device="cpu")
    if "hf_model_name" in text:  # small, and with buffers that nothing else fills
        clip.text = open_clip.model._build_text_tower(config["embed_dim"], text)
    return _filled(clip, name)


def _filled(clip: Any, name: str) -> Any:
    """A model that has been on the device meta, with random numbers for weights."""
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for module in clip.modules():
            for key, parameter in module.named_parameters(recurse=False):
                # Near one for what multiplies, so that nothing vanishes on the way.
                multiplies = "norm" in type(module).__name__.lower() and key == "weight"
                scale = 0.1 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
                parameter.normal_(1.0 if multiplies else 0.0, scale, generator=generator)
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
            if (
                isinstance(module, (open_clip.CLIP, open_clip.transformer.TextTransformer))
                and module.attn_mask is not None
            ):
                module.attn_mask.fill_(float("-inf")).triu_(1)
    return clip.eval().requires_grad_(False)


def _hub_model(name: str, folder: Path) -> str:
    """A folder with the configuration of a small text model of the same kind."""
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any]
    if "mt5" in name:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": DEPTH, "num_heads": 2}
        config = transformers.MT5Config(vocab_size=WORDS, **sizes)
    elif "nllb" in name:
        sizes = {"d_model": 32, "encoder_layers": DEPTH, "encoder_ffn_dim": 64, "encoder_attention_heads": 2}
        sizes |= {"decoder_layers": 1, "decoder_ffn_dim": 64, "decoder_attention_heads": 2}
        config = transformers.M2M100Config(vocab_size=WORDS, **sizes)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 64}
        kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
        config = kind(vocab_size=WORDS, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **sizes)
    path = folder / name.replace("/", "-")
    config.save_pretrained(path)
    return str(path)
