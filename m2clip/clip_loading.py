"""Opens the CLIP a model is built on: an open_clip tag, a local checkpoint, ViCLIP, or the bundled tiny CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .errors import InputError

TINY = "tiny"
VICLIP = ("ViCLIP-B-16", "ViCLIP-L-14")


def load_clip(
    name: str = "ViT-B-16-quickgelu", pretrained: str | Path | None = "openai", device: str = "cpu"
) -> nn.Module:
    """An open_clip CLIP in evaluation mode and fp32, remembering where it came from.

    Args:
        name: an open_clip architecture such as "ViT-B-16-quickgelu", "ViCLIP-B-16" or "ViCLIP-L-14", whose weights are
            read from a file, or "tiny" for the bundled model.
        pretrained: an open_clip tag ("openai", "laion2b_s34b_b88k" ...), the path of a local checkpoint (OpenAI's .pt
            archives, state dicts, safetensors), or None for random weights. Ignored for "tiny".
        device: where the weights go; "meta" gives the architecture without memory.

    Raises:
        InputError: an unknown architecture or tag, a missing or unreadable file, weights that cannot be downloaded.
    """
    if name == TINY:
        from .tiny import tiny_clip

        clip, pretrained = tiny_clip().to(device), None
    elif name in VICLIP:
        from .viclip import load_viclip

        with torch.device(device):
            clip = load_viclip(name, pretrained).to(device)
    else:
        clip = _open_clip_model(name, None if pretrained is None else str(pretrained), device)
    clip.m2clip_source = {"name": name, "pretrained": None if pretrained is None else str(pretrained)}
    return clip.eval()


def _open_clip_model(name: str, pretrained: str | None, device: str) -> nn.Module:
    import open_clip

    if name not in open_clip.list_models():
        raise InputError(f"unknown CLIP {name!r}{_suggestion(name, [TINY, *VICLIP, *open_clip.list_models()])}")
    if pretrained is None:
        return _quietly(device, lambda: open_clip.create_model(name, pretrained=None, device=device))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise InputError(
            f"no weights {pretrained!r} for {name}: neither a file nor one of the tags {', '.join(tags) or '(none)'}"
        )
    try:
        return _quietly(device, lambda: open_clip.create_model(name, pretrained=pretrained, device=device))
    except Exception as error:  # hub, network, file format and key errors all mean: these weights are not to be had
        if not Path(pretrained).is_file():
            raise InputError(
                f"cannot download the weights {pretrained!r} of {name}: no network, or no such file on the hub; "
                "give the path of a checkpoint you have, or use the CLIP 'tiny'"
            ) from error
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load {pretrained!r} for {name}: {first}") from error


def _quietly(device: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build on a device without what open_clip logs: random weights were asked for, failures are told by us."""
    import logging

    logging.disable(logging.ERROR)
    try:
        with torch.device(device):
            return build()
    finally:
        logging.disable(logging.NOTSET)


def _suggestion(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return (
        f"; did you mean {' or '.join(close)}?"
        if close
        else "; `python -c 'import open_clip; print(open_clip.list_models())'` lists them"
    )
