"""The methods, and the one function that builds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from torch import nn

from m2clip.errors import InputError
from m2clip.kernels.ops.checks import check_count, check_flag, check_number
from m2clip.methods.aim import AIM, AIMOptions
from m2clip.methods.aim import PRESETS as AIM_PRESETS
from m2clip.methods.base import VideoModel
from m2clip.methods.frozen import FrozenCLIP, FrozenOptions
from m2clip.methods.m2clip import M2CLIP, PRESETS, M2CLIPOptions
from m2clip.methods.ma_fsar import MAFSAR, MAFSAROptions
from m2clip.methods.ma_fsar import PRESETS as MA_FSAR_PRESETS
from m2clip.methods.msta import MSTA, MSTAOptions
from m2clip.methods.msta import PRESETS as MSTA_PRESETS
from m2clip.methods.results import LabelSet, Output
from m2clip.methods.st_adapter import PRESETS as ST_ADAPTER_PRESETS
from m2clip.methods.st_adapter import STAdapterModel, STAdapterOptions
from m2clip.plugins import registered
from m2clip.towers.prompts import PromptTokenizer


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

__all__ = ["METHODS", "LabelSet", "Method", "Output", "VideoModel", "complete_options", "create_model", "find_method"]


def find_method(name: str) -> Method:
    """A method of this package, or one that another package registers as an entry point of the group `m2clip.methods`.

    Args:
        name: "m2clip", "msta", ..., or the entry point's name; its object is a :class:`Method`.

    Raises:
        InputError: there is none of this name, or it is no :class:`Method`.
    """
    if name in METHODS:
        return METHODS[name]
    found: Method = registered("m2clip.methods", name, Method, "method", METHODS)
    if not (isinstance(found.model, type) and issubclass(found.model, VideoModel) and is_dataclass(found.options)):
        raise InputError(f"method {name!r} is none: a Method has a VideoModel and a dataclass of options")
    if not isinstance(found.presets, dict) or found.default_preset not in found.presets:
        raise InputError(f"method {name!r} is none: its presets lack the default {found.default_preset!r}")
    return found


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
        method: "m2clip", "msta", "st_adapter", "aim", "ma_fsar", "clip" for frozen CLIP, or what another package
            registers (:func:`find_method`).
        clip: of :func:`m2clip.load_clip`, open_clip or transformers; its modules are shared with the model and frozen.
        class_names: names of the C classes, label i being the i-th name.
        num_frames: T, frames per clip.
        preset: named options of the method; for "m2clip" "official" (the authors' code, default) or "paper", for "msta"
            "paper" (default), "paper_fewshot" or "early", for "st_adapter" "12x384" (default) or "24x384", for "aim"
            "k400" (default), "ssv2" or "paper", for "ma_fsar" "paper" (default) or, without parts of it, "tpcm",
            "adaptation" and "frozen".
        tokenizer: where the CLIP does not use OpenAI's and was not opened with its own: one of m2clip or transformers.
        options: fields of the method's options, in place of the preset's.

    Raises:
        InputError: an unknown method, preset or option, or values that do not fit the CLIP.
    """
    entry = find_method(method)
    preset = preset or entry.default_preset
    if preset not in entry.presets:
        raise InputError(f"method {method!r} has no preset {preset!r}; choose from {', '.join(entry.presets)}")
    hints = get_type_hints(entry.options)
    for name, value in options.items():
        if name not in hints:
            raise InputError(f"method {method!r} has no option {name!r}; its options are {', '.join(hints)}")
        check_type(f"option {name}", value, hints[name])
    check_type("num_frames", num_frames, int)
    try:
        return entry.model(
            clip, class_names, num_frames, entry.options(**{**entry.presets[preset], **options}), tokenizer
        )
    except InputError:
        raise
    except ValueError as error:  # an option out of range, as the layer that takes it tells
        raise InputError(f"method {method!r}: {error}") from None


def check_type(name: str, value: Any, hint: Any) -> None:
    """InputError where a value is not of its type, or of none of a union's."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(part is NoneType and value is None for part in parts):
        return
    problem: Exception = TypeError(f"{name} cannot be None")
    for part in parts:
        if part is not NoneType:
            try:
                _check_part(name, value, part)
                return
            except (TypeError, ValueError) as error:
                problem = error
    raise InputError(str(problem)) from None


def _check_part(name: str, value: Any, hint: Any) -> None:
    """TypeError or ValueError where a value is not of a type that is no union; types unknown here are let through."""
    kind = get_origin(hint) or hint
    if kind is bool:
        check_flag(name, value)
    elif kind is int:
        check_count(name, value, least=-sys.maxsize)
    elif kind is float:
        check_number(name, value)
    elif kind is str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be text, got {value!r}")
    elif kind is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name}: {value!r} is none of {', '.join(map(str, get_args(hint)))}")
    elif isinstance(kind, type) and issubclass(kind, Mapping | Sequence):
        mapping = issubclass(kind, Mapping)
        of = next((part for part in reversed(get_args(hint)) if part is not Ellipsis), Any)
        if not isinstance(value, Mapping if mapping else Sequence) or isinstance(value, str):
            things = {str: "texts", int: "numbers", float: "numbers"}.get(of, "values")
            raise TypeError(f"{name} must {'map names to' if mapping else 'be a list of'} {things}, got {value!r}")
        for part in value.values() if isinstance(value, Mapping) else value:
            check_type(name, part, of)


def complete_options(method: str, saved: dict[str, Any]) -> dict[str, Any]:
    """The options of a model of an earlier version, with those that its method did not have at that time.

    Such an option's default is what was done before there was a choice.

    Args:
        method: its method.
        saved: its options by name.
    """
    try:
        entry = find_method(method)
    except InputError:  # of a package that is not here: what is saved is all that is known of it
        return dict(saved)
    return {**asdict(entry.options()), **saved}
