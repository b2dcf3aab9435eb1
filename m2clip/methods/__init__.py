"""The methods, and the one function that builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from torch import nn

from m2clip.errors import InputError
from m2clip.text import PromptTokenizer

from .aim import AIM, AIMOptions
from .aim import PRESETS as AIM_PRESETS
from .base import Output, VideoModel
from .frozen import FrozenCLIP, FrozenOptions
from .m2clip import M2CLIP, PRESETS, M2CLIPOptions
from .ma_fsar import MAFSAR, MAFSAROptions
from .ma_fsar import PRESETS as MA_FSAR_PRESETS
from .msta import MSTA, MSTAOptions
from .msta import PRESETS as MSTA_PRESETS
from .st_adapter import PRESETS as ST_ADAPTER_PRESETS
from .st_adapter import STAdapterModel, STAdapterOptions


class Method(NamedTuple):
    """A method's model, its typed options, its presets and the preset used when none is named."""

    model: type[VideoModel]
    options: type
    presets: dict[str, dict[str, Any]]
    default_preset: str


METHODS = {
    "m2clip": Method(M2CLIP, M2CLIPOptions, PRESETS, "official"),
    "msta": Method(MSTA, MSTAOptions, MSTA_PRESETS, "paper"),
    "st_adapter": Method(STAdapterModel, STAdapterOptions, ST_ADAPTER_PRESETS, "12x384"),
    "aim": Method(AIM, AIMOptions, AIM_PRESETS, "k400"),
    "ma_fsar": Method(MAFSAR, MAFSAROptions, MA_FSAR_PRESETS, "paper"),
    "clip": Method(FrozenCLIP, FrozenOptions, {"default": {}}, "default"),
}

__all__ = ["METHODS", "Method", "Output", "VideoModel", "create_model"]


def create_model(
    method: str,
    clip: nn.Module,
    class_names: Sequence[str],
    num_frames: int = 8,
    preset: str | None = None,
    tokenizer: PromptTokenizer | None = None,
    **options: Any,
) -> VideoModel:
    """Build a video model on a CLIP.

    Args:
        method: "m2clip", "msta", "st_adapter", "aim", "ma_fsar", or "clip" for frozen CLIP.
        clip: an open_clip CLIP with a ViT; its modules are shared with the model and frozen.
        class_names: names of the C classes, label i being the i-th name.
        num_frames: T, frames a clip.
        preset: named options of the method; for "m2clip" "official" (the authors' code, default) or "paper", for "msta"
            "paper" (default), "paper_fewshot" or "early", for "st_adapter" "12x384" (default) or "24x384", for "aim"
            "k400" (default), "ssv2" or "paper", for "ma_fsar" "paper" (default) or, without parts of it, "tpcm",
            "adaptation" and "frozen".
        tokenizer: where the CLIP does not use the standard tokenizer.
        options: fields of the method's options, in place of the preset's.

    Raises:
        InputError: an unknown method, preset or option, or values that do not fit the CLIP.
    """
    entry = METHODS.get(method)
    if entry is None:
        raise InputError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    preset = preset or entry.default_preset
    if preset not in entry.presets:
        raise InputError(f"method {method!r} has no preset {preset!r}; choose from {', '.join(entry.presets)}")
    known = [f.name for f in fields(entry.options)]
    for name in options:
        if name not in known:
            raise InputError(f"method {method!r} has no option {name!r}; its options are {', '.join(known)}")
    return entry.model(clip, class_names, num_frames, entry.options(**{**entry.presets[preset], **options}), tokenizer)
