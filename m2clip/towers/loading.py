"""Opens the CLIP a model is built on: an architecture with weights, a repository, ViCLIP, or the bundled CLIP."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError, Notice
from m2clip.files.disk import is_file
from m2clip.sizes import AnySize, sides, size_text
from m2clip.towers.architectures import Architecture, build, checked, named_architecture, set_image_size
from m2clip.towers.pictures import set_pictures
from m2clip.towers.repositories import (
    is_repository,
    repository_architecture,
    repository_tokenizer,
    repository_weights,
    transformers_clip,
)
from m2clip.towers.tokenizers import byte_pairs, own_tokenizer
from m2clip.towers.weight_files import fill, first_line, read_weights, release
from m2clip.towers.weight_sources import CONFIG_FILE, PICTURES, facts_of_file, tag_file

TINY = "tiny"
VICLIP = ("ViCLIP-B-16", "ViCLIP-L-14")
_EMBEDDINGS = ("positional_embedding", "visual.positional_embedding")  # which open_clip fits to another size


def load_clip(
    name: str = "ViT-B-16-quickgelu",
    pretrained: str | Path | None = "openai",
    device: str = "cpu",
    tokenizer: str | Path | None = None,
    offline: bool = False,
    image_size: AnySize | None = None,
) -> nn.Module:
    """A CLIP in evaluation mode and fp32, remembering where it came from.

    Args:
        name: an open_clip architecture such as "ViT-B-16-quickgelu"; a repository or folder of open_clip's,
            "hf-hub:timm/ViT-B-16-SigLIP2" or "local-dir:FOLDER"; a repository or folder of transformers, such as
            "openai/clip-vit-base-patch16"; "ViCLIP-B-16" or "ViCLIP-L-14", whose weights are read from a file; or
            "tiny" for the bundled model.
        pretrained: an open_clip tag ("openai", "laion2b_s34b_b88k" ...), the path of a local checkpoint (OpenAI's .pt
            archives, state dicts, safetensors), or None for random weights. "tiny", repositories and folders have
            weights of their own.
        device: where the weights go; "meta" gives the architecture without memory.
        tokenizer: for architectures with a tokenizer of their own: its name on the Hugging Face hub, to download it, or
            a folder that holds it; None takes what an earlier download left on this machine.
        offline: take only what is on this machine, and download nothing.
        image_size: of square images, or (height, width), also as text, "224x320" (`m2clip.sizes`); position embeddings
            are interpolated as the library of the model does it. None for the model's own.

    Raises:
        InputError: an unknown architecture or tag, or one of which no towers can be made; a missing or unreadable file;
            weights that were trained with another activation than the architecture has; weights or a tokenizer that are
            not there or cannot be downloaded.
    """
    size = None if image_size is None else sides(image_size)
    if name in (TINY, *VICLIP):
        if tokenizer is not None:
            raise InputError(f"{name} has OpenAI's tokenizer, which is built in: leave the tokenizer out")
        if size is not None and name != TINY:
            raise InputError(f"{name} takes images of one size: leave image_size out")
    architecture = None
    if name == TINY:
        from m2clip.towers.tiny import tiny_clip

        if pretrained not in (None, "openai"):
            raise InputError(f"the CLIP {TINY!r} has weights of its own: leave out {str(pretrained)!r}")
        clip, pretrained = tiny_clip(size).to(device), None
    elif name in VICLIP:
        from m2clip.towers.viclip import load_viclip

        with torch.device(device):
            clip = load_viclip(name, pretrained).to(device)
    elif is_repository(name):
        if pretrained not in (None, "openai"):
            raise InputError(f"{name} has weights of its own: leave out {str(pretrained)!r}")
        architecture = repository_architecture(name, offline)
        if architecture is None:
            clip = transformers_clip(name, pretrained is not None, device, tokenizer, offline, size)
        else:
            source = tokenizer or repository_tokenizer(name, architecture)
            own = own_tokenizer(name, architecture.config["text_cfg"], checked(architecture, size), source, offline)
            file = None if pretrained is None else repository_weights(name, offline)
            clip = _filled(architecture, file, device, size)
            clip.m2clip_tokenizer = own
    else:
        architecture = named_architecture(name, [TINY, *VICLIP])
        bare = checked(architecture, size)
        own = own_tokenizer(name, architecture.config["text_cfg"], bare, tokenizer, offline)
        clip = _open_clip_model(architecture, None if pretrained is None else str(pretrained), device, offline, size)
        clip.m2clip_tokenizer = own
    named = {"pretrained": pretrained, "tokenizer": tokenizer}
    clip.m2clip_source = {"name": name} | {key: None if value is None else str(value) for key, value in named.items()}
    if size is not None:
        clip.m2clip_source["image_size"] = size_text(size)
    return clip.eval()


def bare_clip(name: str, image_size: AnySize | None = None) -> nn.Module:
    """A CLIP of :func:`load_clip` without weights, on the device meta, with any tokenizer: to count what it computes.

    Args:
        name: see there.
        image_size: see there.

    Raises:
        InputError: as there, but for a tokenizer that is not on this machine.
    """
    if name in (TINY, *VICLIP) or is_repository(name):
        return load_clip(name, None, "meta", image_size=image_size)
    size = None if image_size is None else sides(image_size)
    clip = checked(named_architecture(name, [TINY, *VICLIP]), size)
    clip.m2clip_tokenizer = byte_pairs(clip)
    return clip.eval()


def check_clip(name: str, pretrained: str | Path | None, image_size: AnySize | None = None) -> None:
    """Refuse what :func:`load_clip` would refuse, without weights: an architecture on the device meta, in seconds.

    Args:
        name: see there.
        pretrained: see there.
        image_size: see there.

    Raises:
        InputError: an unknown CLIP, one of which no towers can be made, impossible sizes, or a tag or file of weights
            that is not there.
    """
    if name in VICLIP:
        if pretrained is not None and not is_file(pretrained):
            raise InputError(f"{pretrained} is no file: the weights of {name} are read from one")
        return
    if is_repository(name):
        return  # whose weights are their own
    bare_clip(name, image_size)
    if pretrained is not None and name != TINY:
        architecture = named_architecture(name, [TINY, *VICLIP])
        _check_activation(architecture, str(pretrained), _facts(name, str(pretrained)))


def _facts(name: str, pretrained: str) -> dict[str, Any]:
    """What is known of the weights of a tag or a file; InputError where there are none."""
    import open_clip

    known = open_clip.get_pretrained_cfg(name, pretrained)
    if known:
        return {"quick_gelu": False, **known}
    if is_file(pretrained):
        return facts_of_file(Path(pretrained), name)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "(none)"
    raise InputError(f"no weights {pretrained!r} for {name}: neither a file nor one of the tags {tags}")


def _open_clip_model(
    architecture: Architecture, pretrained: str | None, device: str, offline: bool, size: tuple[int, int] | None
) -> Any:
    """A CLIP of open_clip with the weights of a tag or a file, or random ones."""
    import open_clip

    name = architecture.name
    if pretrained is None:
        return _filled(architecture, None, device, size)
    facts = _facts(name, pretrained)
    _check_activation(architecture, pretrained, facts)
    if "quick_gelu" not in facts:
        kind = "QuickGELU" if architecture.config.get("quick_gelu") else "GELU"
        warnings.warn(
            Notice(
                f"{pretrained}: the origin of these weights is not known, so they are taken as trained with {kind} and "
                f"on pictures of CLIP's mean and deviation; an {CONFIG_FILE} beside them would tell"
            ),
            stacklevel=3,
        )
    tagged = bool(open_clip.get_pretrained_cfg(name, pretrained))
    file = tag_file(name, pretrained, facts, offline) if tagged else pretrained
    clip = _filled(architecture, file, device, size, pretrained)
    set_pictures(clip, **{name: facts[name] for name in PICTURES if name in facts})
    return clip


def _check_activation(architecture: Architecture, pretrained: str, facts: dict[str, Any]) -> None:
    import open_clip

    name, trained = architecture.name, facts.get("quick_gelu")
    if trained is None or trained == bool(architecture.config.get("quick_gelu")):
        return
    other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
    advice = f"use {other}" if other in open_clip.list_models() else "open_clip has no architecture for them"
    kinds = ("QuickGELU", "GELU") if trained else ("GELU", "QuickGELU")
    raise InputError(f"the weights {pretrained!r} were trained with {kinds[0]}, and {name} has {kinds[1]}: {advice}")


def _filled(
    architecture: Architecture,
    file: str | Path | None,
    device: str,
    size: tuple[int, int] | None,
    called: str | None = None,
) -> Any:
    """A CLIP of an architecture with the weights of a file, which errors name as called, or with random ones."""
    clip = build(architecture, device, size)
    if file is not None:
        release(clip)  # before others are read, so that weights are never there twice
        _fill(clip, read_weights(file), f"{called or str(file)!r} cannot be loaded for {architecture.name}")
    set_image_size(clip, size)
    return clip.to(device)


def _fill(clip: Any, state: dict[str, Tensor], complaint: str) -> None:
    """Give a CLIP the weights of a state dict, which is emptied, as open_clip does with a file; raises InputError."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    own = clip.state_dict()
    try:
        given, state = state, dict(convert_state_dict(clip, state))
        given.clear()
        state.pop("text.transformer.embeddings.position_ids", None)
        for name in _EMBEDDINGS:
            if name in state and (state[name].dim() != 2 or state[name].shape[1] != own[name].shape[1]):
                raise InputError(f"{complaint}: {name!r} has shape {tuple(state[name].shape)}")
        for name, tensor in state.items():
            if name.endswith("positional_embedding") and tensor.is_floating_point():
                state[name] = tensor.float()  # in which alone every resizing is there on the CPU
        for name in ("logit_scale", "logit_bias"):
            if name in state and name in own and state[name].numel() == 1:
                state[name] = state[name].reshape(own[name].shape)
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
    except InputError:
        raise
    except Exception as error:  # foreign tensors of any name and shape
        raise InputError(f"{complaint}: {first_line(error)}") from None
    fill(clip, state, complaint)
