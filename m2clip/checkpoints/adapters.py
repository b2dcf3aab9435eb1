"""Saving and loading what was trained: adapter_config.json and adapters.safetensors, nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.data.lists.class_names import name_list
from m2clip.errors import InputError
from m2clip.files.disk import DIGEST, read_json, replacing, seal, unseal
from m2clip.files.tensors import DamagedError, load_tensors, save_tensors
from m2clip.methods import VideoModel, create_model
from m2clip.towers.vision import tower_signature
from m2clip.towers.weight_files import is_finite

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"
FORMAT = 2
_FIELDS = ("format", "method", "num_frames", "class_names", "options", "tower", "clip", "tokenizer", "views")
_CLIP_FIELDS = {"name", "pretrained", "tokenizer", "image_size"}
_MOST_FRAMES = 1 << 16


def save_adapters(model: VideoModel, folder: str | Path) -> Path:
    """Write a model's trained tensors and its configuration, each to a temporary name first and then renamed.

    The two files are all that is needed: they name the CLIP, its tokenizer and the views of a video, `model.views`.
    Both carry a digest.

    Args:
        model: any model of :func:`m2clip.create_model`.
        folder: is created; an earlier save in it stays readable until the new one is complete.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = {
        "format": FORMAT,
        "method": model.method,
        "num_frames": model.num_frames,
        "class_names": model.trained_class_names,
        "options": model.options(),
        "tower": model.tower,
        "clip": model.clip_source,
        "tokenizer": model.tokenizer.identity,
        "views": dict(model.views),
    }
    save_tensors(model.trained_state_dict(), folder / WEIGHTS_FILE, _belonging(config))
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(seal(config), indent=2, ensure_ascii=False), encoding="utf-8")
    return folder


def load_adapters(
    folder: str | Path,
    clip: nn.Module | None = None,
    *,
    class_names: list[str] | None = None,
    num_frames: int | None = None,
) -> VideoModel:
    """Rebuild a saved model on a CLIP.

    Args:
        folder: where :func:`save_adapters` wrote.
        clip: the CLIP the adapters were trained on; by default the one named in the configuration is opened.
        class_names: if given, checked against the saved ones.
        num_frames: if given, checked against the saved number.

    Raises:
        InputError: missing or damaged files; a CLIP, tokenizer, class names or frame count other than the saved ones,
            with the differing fields named; a CLIP that would have to be downloaded, which only who names it does.
    """
    from m2clip.data.clips import ClipSettings

    folder = Path(folder)
    config = read_adapter_config(folder)
    if clip is None:
        if not config["clip"]:
            raise InputError(f"{folder / CONFIG_FILE} does not name its CLIP; pass the clip it was trained on")
        from m2clip.towers.loading import load_clip

        clip = load_clip(**config["clip"], offline=True)
    check_tower(folder, config["tower"], tower_signature(clip))
    if num_frames is not None and num_frames != config["num_frames"]:
        raise InputError(f"{folder} was trained on {config['num_frames']} frames per clip, not {num_frames}")
    if class_names is not None and name_list(class_names) != config["class_names"]:
        raise InputError(_name_difference(folder, config["class_names"], class_names))
    tensors = read_adapter_weights(folder, config)
    with torch.device("meta"):  # where sizes that no tensor has cost no memory
        _check_fit(folder, tensors, _built(folder, config, clip))
    model = _built(folder, config, clip)
    check_equal(folder, "tokenizer", config["tokenizer"], model.tokenizer.identity)
    model.load_trained_state_dict(tensors)
    views = ClipSettings(**config["views"])
    model.views = model.views | {name: getattr(views, name) for name in config["views"]}
    return model.eval()


def _built(folder: Path, config: dict[str, Any], clip: nn.Module) -> VideoModel:
    try:
        return create_model(config["method"], clip, config["class_names"], config["num_frames"], **config["options"])
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        # Options of a foreign file can be of any type and size.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder / CONFIG_FILE} describes no model that can be built: {reason}") from error


def _check_fit(folder: Path, tensors: dict[str, Tensor], model: VideoModel) -> None:
    try:
        model.load_trained_state_dict(tensors)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit its configuration: {error}") from error


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration beside saved adapters, its fields checked for presence."""
    path = folder / CONFIG_FILE
    try:
        config = read_json(path)
        if isinstance(config, dict) and config.get("format", FORMAT) == FORMAT:
            config = unseal(config, required=True)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {CONFIG_FILE}: not a folder written by save_adapters or m2clip train"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no configuration")
    if config.get("format", FORMAT) != FORMAT:
        raise InputError(f"{path} has format {config['format']}; this version of m2clip reads format {FORMAT}")
    missing = [name for name in _FIELDS if name not in config]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    _check_types(path, config)
    return config


def read_adapter_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The saved tensors beside a configuration.

    Raises:
        InputError: a missing or damaged file, one of another configuration, or numbers that are not finite.
    """
    path = folder / WEIGHTS_FILE
    try:
        tensors, facts = load_tensors(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except DamagedError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if facts.pop("sha256", None) is None or facts != _belonging(config):
        raise InputError(f"{path} was not saved together with the {CONFIG_FILE} beside it")
    bad = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    if bad is not None:
        raise InputError(f"{path}: {bad!r} holds values that are no finite floating-point numbers")
    return tensors


def _belonging(config: dict[str, Any]) -> dict[str, Any]:
    """What weights tell of the configuration that they were saved with."""
    return {"config": seal(config)[DIGEST]}


def _check_types(path: Path, config: dict[str, Any]) -> None:
    from m2clip.data.clips import ClipSettings

    names, clip = config["class_names"], config["clip"]
    for field, fits in (
        ("method", isinstance(config["method"], str)),
        ("num_frames", type(config["num_frames"]) is int and 0 < config["num_frames"] <= _MOST_FRAMES),
        ("class_names", isinstance(names, list) and all(isinstance(name, str) for name in names)),
        ("options", isinstance(config["options"], dict)),
        ("tower", isinstance(config["tower"], dict)),
        ("tokenizer", isinstance(config["tokenizer"], dict)),
        ("views", isinstance(config["views"], dict) and config["views"].keys() <= ClipSettings().views.keys()),
        ("clip", clip is None or (isinstance(clip, dict) and {"name", "pretrained"} <= clip.keys() <= _CLIP_FIELDS)),
        ("clip", not isinstance(clip, dict) or all(isinstance(value, (str, type(None))) for value in clip.values())),
    ):
        if not fits:
            raise InputError(f"{path}: {field} is not what it should be: the file is damaged or was changed")
    try:
        ClipSettings(**config["views"])
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: views: {error}") from error


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values of weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        # Bytes as they are: bf16 has no numpy type.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tower(folder: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """InputError unless a CLIP's towers are those that adapters were saved with."""
    check_equal(folder, "CLIP", saved, {**dict.fromkeys(saved), **given})


def check_equal(folder: Path, what: str, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """InputError, naming the fields, unless all that is given is as it was saved."""
    differing = [f"{k} {saved.get(k)!r} (given: {given.get(k)!r})" for k in given if saved.get(k) != given.get(k)]
    if differing:
        raise InputError(f"{folder} was trained on another {what}: {', '.join(differing)}")


def _name_difference(folder: Path, saved: list[str], given: list[str]) -> str:
    if len(saved) != len(given):
        return f"{folder} was trained on {len(saved)} classes, the given label set has {len(given)}"
    i = next(i for i, (a, b) in enumerate(zip(saved, given, strict=True)) if a != b)
    return f"class {i} is {saved[i]!r} in {folder} and {given[i]!r} in the given label set"
