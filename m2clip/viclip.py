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

from .errors import InputError
from .joint_tower import EMBEDDING

ARCHITECTURES = {"ViCLIP-B-16": "ViT-B-16-quickgelu", "ViCLIP-L-14": "ViT-L-14-quickgelu"}
CONTEXT_LENGTH, FRAMES = 32, 8
_LEAST_TEMPERATURE = 0.01  # at which the published code cuts it off


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
    return clip


def load_viclip(name: str, path: str | Path | None) -> Any:
    """A ViCLIP, with the weights of a published checkpoint unless path is None.

    Raises:
        InputError: a file that cannot be read, or that holds no ViCLIP of this size.
    """
    clip = build_viclip(name)
    if path is None:
        return clip
    state = from_published(_read(path), str(path))
    for key, size in (("positional_embedding", CONTEXT_LENGTH), (f"visual.{EMBEDDING}", FRAMES)):
        if key in state and state[key].shape[-2] != size:
            _resize(clip, key, state[key])
    try:
        missing, unexpected = clip.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path} holds no {name}: {str(error).splitlines()[-1].strip()}") from None
    missing = [key for key in missing if key != "attn_mask"]
    if missing or unexpected:
        raise InputError(
            f"{path} holds no {name}: {len(missing)} tensors are missing and {len(unexpected)} are unknown, "
            f"among them {(missing or unexpected)[0]!r}"
        )
    return clip


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
        elif name == "temp":
            found["logit_scale"] = -tensor.float().clamp_min(_LEAST_TEMPERATURE).log().reshape(())
        else:
            raise InputError(f"{source} is no checkpoint of ViCLIP: it holds {name!r}")
    if "logit_scale" not in found:
        found["logit_scale"] = torch.tensor(math.log(1 / _LEAST_TEMPERATURE))
    return {name: tensor.float() for name, tensor in found.items()}


def to_published(clip: Any) -> dict[str, Tensor]:
    """The state dict of a ViCLIP in the published form."""
    state = {}
    for name, tensor in clip.state_dict().items():
        if name == "logit_scale":
            state["temp"] = (-tensor).exp()
        elif name == "visual.conv1.weight":
            state["vision_encoder.conv1.weight"] = tensor.unsqueeze(2)
        else:
            vision = name.startswith("visual.")
            state[f"vision_encoder.{name[7:]}" if vision else f"text_encoder.{name}"] = tensor
    return state


def _resize(clip: Any, key: str, tensor: Tensor) -> None:
    """Give a model's embedding the length that a checkpoint has."""
    module = clip.visual if key.startswith("visual.") else clip
    name = key.removeprefix("visual.")
    setattr(module, name, nn.Parameter(torch.empty_like(tensor)))
    if module is clip:
        clip.context_length = len(tensor)
        clip.register_buffer("attn_mask", torch.full((len(tensor),) * 2, -math.inf).triu_(1), persistent=False)


def _read(path: str | Path) -> Mapping[str, Tensor]:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} does not exist: ViCLIP's weights are read from a checkpoint that you have")
    if file.suffix == ".safetensors":
        from .checkpoint import read_tensors

        return read_tensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of many kinds for files that it cannot read
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} cannot be read as a checkpoint: {first}") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{file} holds no state dict of a model")
    return state
