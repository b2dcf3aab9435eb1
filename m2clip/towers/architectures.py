"""Architectures of open_clip: what is known of one, whether towers can be made of it, and models of it."""

from __future__ import annotations

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m2clip.errors import InputError
from m2clip.sizes import size_text
from m2clip.towers.sources import open_text, open_vision
from m2clip.towers.text_models import described
from m2clip.towers.weight_files import first_line
from m2clip.towers.weight_sources import quiet

_NO_TRANSFORMERS = ("convnext", "fastvit", "swin")  # timm's names begin so


class Architecture(NamedTuple):
    """What open_clip builds a model from.

    Attributes:
        name: what the user calls it.
        spec: what open_clip's create_model calls it.
        config: its configuration.
    """

    name: str
    spec: str
    config: dict[str, Any]


def named_architecture(name: str, others: list[str]) -> Architecture:
    """The architecture that open_clip knows by a name.

    Args:
        name: its name.
        others: names that are right elsewhere, to suggest.

    Raises:
        InputError: there is none.
    """
    config = _read_configuration(name)
    if config is not None:
        return Architecture(name, name, config)

    import open_clip

    if name not in open_clip.list_models():
        raise InputError(f"unknown CLIP {name!r}{_suggestion(name, [*others, *open_clip.list_models()])}")
    return Architecture(name, name, open_clip.get_model_config(name))


def _read_configuration(name: str) -> dict[str, Any] | None:
    """What open_clip's own file says of an architecture, read without the library, whose import takes seconds."""
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        for file in (Path(folder) / "model_configs").glob("*.json"):
            if file.stem == name:
                return dict(json.loads(file.read_text(encoding="utf-8")))
    return None


def _check_configuration(config: dict[str, Any]) -> None:
    """InputError for vision models that a configuration shows to be no transformers."""
    vision = config["vision_cfg"]
    of_timm = str(vision.get("timm_model_name") or "")
    if isinstance(vision.get("layers"), list):
        raise InputError("vision models of type ModifiedResNet are not supported: use a CLIP ViT")
    if of_timm.startswith(_NO_TRANSFORMERS):
        raise InputError(
            f"the vision model {of_timm} of timm is not supported: it is no plain vision transformer, with tokens of "
            "one width and blocks of attention and MLP"
        )


def folder_architecture(name: str, config_file: Path) -> Architecture:
    """The architecture that open_clip's configuration in a folder describes.

    Raises:
        InputError: a file that is none.
    """
    try:
        config = json.loads(config_file.read_text())["model_cfg"]
        if not isinstance(config["vision_cfg"], dict) or not isinstance(config["text_cfg"], dict):
            raise ValueError("vision_cfg and text_cfg are no objects")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{config_file} is no configuration of open_clip: {error}") from None
    return Architecture(name, f"local-dir:{config_file.parent}", config)


def build(
    architecture: Architecture, device: str, image_size: tuple[int, int] | None = None, depth: int | None = None
) -> Any:
    """A CLIP of random weights on a device, without what open_clip logs: that they are random was asked for.

    Args:
        architecture: of what.
        device: where.
        image_size: (height, width) of its images; None for its own. timm's models get theirs with
            :func:`set_image_size`, once they have their weights.
        depth: blocks of the towers that are open_clip's own; None for theirs.

    Raises:
        InputError: a vision model that is no transformer, a text model of the hub that cannot be built, or a
            configuration that describes no model.
    """
    _check_configuration(architecture.config)  # before the library is imported, which takes seconds

    import open_clip

    overrides: dict[str, Any] = {}
    if image_size is not None and "timm_model_name" not in architecture.config["vision_cfg"]:
        overrides["force_image_size"] = image_size
    with ExitStack() as stack:
        text, vision = dict(architecture.config["text_cfg"]), dict(architecture.config["vision_cfg"])
        if depth is not None:
            text["layers"] = depth
            if isinstance(vision.get("layers"), int):
                vision["layers"] = depth
            overrides |= {"text_cfg": text, "vision_cfg": vision}
        if text.get("hf_model_name"):
            text["hf_model_name"] = stack.enter_context(described(text["hf_model_name"]))
            overrides["text_cfg"] = {**text, "hf_model_pretrained": False}
        for context in (quiet(), torch.device(device)):
            stack.enter_context(context)
        try:
            overrides |= {"load_weights": False, "pretrained_text": False}
            clip = open_clip.create_model(architecture.spec, pretrained=None, device=device, **overrides)
        except Exception as error:  # of three libraries, about configurations of any kind
            raise InputError(f"open_clip cannot build it: {first_line(error)}") from None
    # How long its prompts are, which text models of the hub do not know.
    clip.m2clip_context_length = architecture.config["text_cfg"].get("context_length", 77)
    return clip


def set_image_size(clip: Any, image_size: tuple[int, int] | None) -> None:
    """Let a model that has its weights take images of another size, where that is not done when it is built.

    Raises:
        InputError: timm cannot fit it to the size.
    """
    if image_size is not None and hasattr(clip.visual, "set_input_size"):
        try:
            with quiet():
                clip.visual.set_input_size(image_size)
        except Exception as error:  # of timm, about models of any kind
            raise InputError(
                f"timm cannot fit it to images of {size_text(image_size)} pixels: {first_line(error)}"
            ) from None


def checked(architecture: Architecture, image_size: tuple[int, int] | None = None) -> Any:
    """A CLIP on the device meta, after all that can be found before anything is downloaded.

    Raises:
        InputError: an architecture of which no towers can be made, with the reason.
    """
    try:
        clip = build(architecture, "meta", image_size)
        set_image_size(clip, image_size)
        open_vision(clip)
        open_text(clip)
        return clip
    except InputError as error:
        raise InputError(f"{architecture.name} cannot be used: {error}") from None


def _suggestion(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "; m2clip info --clips lists them"
