"""CLIPs that are not named by an architecture: repositories of the Hugging Face hub and folders, of two libraries."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from m2clip.errors import InputError
from m2clip.towers.architectures import Architecture, folder_architecture
from m2clip.towers.pictures import set_processor_pictures
from m2clip.towers.sources import open_text, open_vision
from m2clip.towers.sources.transformers_clip import KINDS
from m2clip.towers.tokenizers import own_tokenizer
from m2clip.towers.weight_files import first_line
from m2clip.towers.weight_sources import CONFIG_FILE, hub_file, kept_file, quiet

HUB, FOLDER = "hf-hub:", "local-dir:"  # as open_clip writes them
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def is_repository(name: str) -> bool:
    """Whether a CLIP's name is that of a repository or a folder, and not an architecture's, as "ViT-B/16" is meant."""
    if name.startswith((HUB, FOLDER)) or "/" not in name:
        return name.startswith((HUB, FOLDER))
    import open_clip

    return name.replace("/", "-") not in open_clip.list_models()


def place_of(name: str) -> str:
    """The repository, or the folder.

    Raises:
        InputError: a folder that is not there.
    """
    place = name.removeprefix(HUB).removeprefix(FOLDER)
    if name.startswith(FOLDER) and not os.path.isdir(place):
        raise InputError(f"{name}: there is no such folder")
    return place


def repository_architecture(name: str, offline: bool) -> Architecture | None:
    """The open_clip architecture that a repository describes; None where it describes a model of transformers.

    Raises:
        InputError: it describes neither, or is not there.
    """
    place = place_of(name)
    config = hub_file(place, CONFIG_FILE, offline)
    if config is not None:
        return folder_architecture(name, config)
    if hub_file(place, "config.json", offline) is not None:
        return None
    raise InputError(
        f"{name}: no {CONFIG_FILE} and no config.json "
        + ("in this folder" if os.path.isdir(place) else "of this repository on this machine")
        + ("" if offline or os.path.isdir(place) else ", and the hub cannot be reached or has no such repository")
    )


def repository_tokenizer(name: str, architecture: Architecture) -> str | None:
    """Where the tokenizer of an open_clip model of a repository is: in its folder, or in a repository of its own.

    Who names a repository may have that downloaded as well.
    """
    own = architecture.config["text_cfg"].get("hf_tokenizer_name")
    place = place_of(name)
    return place if own and os.path.isdir(place) and kept_file(place, "tokenizer_config.json") else own


def repository_weights(name: str, offline: bool) -> Path:
    """The file of an open_clip model's weights in a repository.

    Raises:
        InputError: it is not there, and cannot or shall not be downloaded.
    """
    found = (hub_file(place_of(name), file, offline) for file in _OPEN_CLIP_WEIGHTS)
    weights = next((file for file in found if file is not None), None)
    if weights is None:
        raise InputError(f"{name}: neither {' nor '.join(_OPEN_CLIP_WEIGHTS)} can be found or downloaded")
    return weights


def transformers_clip(
    name: str, weights: bool, device: str, tokenizer: str | Path | None, offline: bool, size: tuple[int, int] | None
) -> Any:
    """A CLIP of transformers, with its tokenizer and what its image processor does.

    Args:
        name: of a repository or folder that :func:`repository_architecture` found to be one of transformers.
        weights: whether it has its weights, or random ones.
        device: where it is.
        tokenizer: another repository or folder for its tokenizer.
        offline: download nothing.
        size: (height, width) of its images; None for its own.

    Raises:
        InputError: another kind of model, or files that are not there or cannot be read.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise InputError(f"{name} needs transformers, which is not installed: pip install transformers") from None
    place = place_of(name)
    config_file = hub_file(place, "config.json", offline)
    assert config_file is not None  # repository_architecture has found it
    kind = _json(config_file, name).get("model_type")
    if kind not in KINDS:
        raise InputError(f"{name} is a model of the kind {kind!r}: models of transformers may be {', '.join(KINDS)}")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(config_file.parent, local_files_only=True)
            if not weights:
                with torch.device(device):
                    clip = transformers.AutoModel.from_config(config)
            else:
                found = (hub_file(place, file, offline) for file in _TRANSFORMERS_WEIGHTS)
                file = next((file for file in found if file is not None), None)
                if file is None:
                    raise InputError(
                        f"{name}: neither of {', '.join(_TRANSFORMERS_WEIGHTS)} can be found or downloaded"
                    )
                clip = transformers.AutoModel.from_pretrained(file.parent, local_files_only=True, dtype=torch.float32)
                clip = clip.to(device)
    except InputError:
        raise
    except Exception as error:  # of transformers, about files of any content
        raise InputError(f"{name} cannot be opened: {first_line(error)}") from None
    if size is not None:
        clip.m2clip_image_size = size
    open_vision(clip)
    own = {"hf_tokenizer_name": place, "context_length": open_text(clip).stem.context_length}
    from_hub = tokenizer if tokenizer is not None else place
    has_own = kind != "clip" or tokenizer is not None
    clip.m2clip_tokenizer = own_tokenizer(name, own if has_own else {}, clip, from_hub if has_own else None, offline)
    processor = hub_file(place, "preprocessor_config.json", offline)
    set_processor_pictures(clip, {} if processor is None else _json(processor, name))
    return clip


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text())
        if not isinstance(told, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {file.name} cannot be read: {error}") from None
    return told
