"""ViCLIP as an open_clip model: CLIP's architecture with a temporal embedding, and the loader of published weights.

ViCLIP's patch embedding looks at one frame at a time (its kernel has a temporal size of 1), so that with the weight
squeezed it is CLIP's own. What makes it a video model is the order of its tokens, see joint_tower.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.towers.joint import EMBEDDING
from m2clip.towers.pictures import set_pictures
from m2clip.towers.weight_files import fill, read_weights, release

ARCHITECTURES = {"ViCLIP-B-16": "ViT-B-16-quickgelu", "ViCLIP-L-14": "ViT-L-14-quickgelu"}
CONTEXT_LENGTH, FRAMES = 32, 8
_LEAST_TEMPERATURE = 0.01  # at which the published code cuts it off
_LONGEST = 1024  # tokens of a prompt and frames of a clip that a checkpoint may have embeddings for


def build_viclip(name: str) -> Any:
    """A ViCLIP with random weights: an `open_clip.CLIP` whose vision model has a temporal embedding of zeros.

    Args:
        name: a key of `ARCHITECTURES`.
    """
    import open_clip

    config = open_clip.get_model_config(ARCHITECTURES[name])
    config["text_cfg"]["context_length"] = CONTEXT_LENGTH
    clip = open_clip.CLIP(**config)
    clip.visual.register_parameter(EMBEDDING, nn.Parameter(torch.zeros(1, FRAMES, clip.visual.conv1.out_channels)))
    set_pictures(clip, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear")
    return clip


def load_viclip(name: str, path: str | Path | None) -> Any:
    """A ViCLIP, with the weights of a published checkpoint unless path is None.

    Raises:
        InputError: a file that cannot be read, or that holds no ViCLIP of this size.
    """
    clip = build_viclip(name)
    if path is None:
        return clip
    release(clip)
    state = from_published(read_weights(path), str(path))
    own = clip.state_dict()
    for key, dim in (("positional_embedding", 0), (f"visual.{EMBEDDING}", 1)):
        if key in state and _is_longer(state[key].shape, own[key].shape, dim):
            _resize(clip, key, state[key])
    fill(clip, state, f"{path} holds no {name}")
    return clip


def _is_longer(shape: torch.Size, own: torch.Size, dim: int) -> bool:
    """Whether a shape is the model's own but for another length, up to the longest that is taken."""
    others = [size for i, size in enumerate(shape) if i != dim]
    return len(shape) == len(own) and others == [n for i, n in enumerate(own) if i != dim] and shape[dim] <= _LONGEST


def from_published(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors by open_clip's names, of a published state dict.

    Its names begin with vision_encoder. and text_encoder.; "temp" is a temperature, the inverse of a logit scale.

    Raises:
        InputError: tensors of other names, or none of these.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        if head == "vision_encoder":
            # (D, 3, 1, p, p): a kernel over one frame
            found[f"visual.{rest}"] = tensor.squeeze(2) if rest == "conv1.weight" and tensor.dim() == 5 else tensor
        elif head == "text_encoder":
            found[rest] = tensor
        elif name == "temp" and tensor.numel() == 1:
            found["logit_scale"] = -tensor.float().clamp_min(_LEAST_TEMPERATURE).log().reshape(())
        else:
            raise InputError(f"{source} is no checkpoint of ViCLIP: it holds {name!r}")
    if "logit_scale" not in found:
        found["logit_scale"] = torch.tensor(math.log(1 / _LEAST_TEMPERATURE))
    return found


def _resize(clip: Any, key: str, tensor: Tensor) -> None:
    """Give a model's embedding the length that a checkpoint has."""
    module = clip.visual if key.startswith("visual.") else clip
    name = key.removeprefix("visual.")
    setattr(module, name, nn.Parameter(torch.empty(tensor.shape)))
    if module is clip:
        clip.context_length = len(tensor)
        clip.register_buffer("attn_mask", torch.full((len(tensor),) * 2, -math.inf).triu_(1), persistent=False)
