"""Saving and loading what was trained: adapter_config.json and adapters.safetensors, nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .files import replacing
from .methods import VideoModel, create_model
from .towers import tower_signature

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"
FORMAT = 1
_MOST_FRAMES = 1 << 16


def save_adapters(model: VideoModel, folder: str | Path) -> Path:
    """Write a model's trained tensors and its configuration, each to a temporary name first and then renamed.

    Args:
        model: any model of :func:`m2clip.create_model`.
        folder: is created; an earlier save in it stays readable until the new one is complete.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    config = {
        "format": FORMAT,
        "method": model.method,
        "num_frames": model.num_frames,
        "class_names": model.trained_class_names,
        "options": model.options(),
        "tower": model.tower,
        "clip": model.clip_source,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.trained_state_dict().items()}
    with replacing(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
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
        class_names, num_frames: if given, checked against the saved ones.

    Raises:
        InputError: missing or damaged files; a CLIP, class names or a frame count other than the saved ones, with the
            differing fields named.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    if clip is None:
        if not config["clip"]:
            raise InputError(f"{folder / CONFIG_FILE} does not name its CLIP; pass the clip it was trained on")
        from .clip_loading import load_clip

        clip = load_clip(**config["clip"])
    _check_equal(folder, "CLIP", config["tower"], tower_signature(clip))
    if num_frames is not None and num_frames != config["num_frames"]:
        raise InputError(f"{folder} was trained on {config['num_frames']} frames a clip, not {num_frames}")
    if class_names is not None and list(class_names) != config["class_names"]:
        raise InputError(_name_difference(folder, config["class_names"], list(class_names)))
    try:
        model = create_model(config["method"], clip, config["class_names"], config["num_frames"], **config["options"])
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        # Options of a damaged file can be of any type and size.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder / CONFIG_FILE} describes no model that can be built: {reason}") from error
    tensors = read_tensors(folder / WEIGHTS_FILE)
    whole = next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None)
    if whole is not None:
        raise InputError(f"{folder / WEIGHTS_FILE}: {whole!r} holds no floating-point numbers: the file is damaged")
    try:
        model.load_trained_state_dict(tensors)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit its configuration: {error}") from error
    return model.eval()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration beside saved adapters, its fields checked for presence."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {CONFIG_FILE}: not a folder written by save_adapters or m2clip train"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    needed = ("format", "method", "num_frames", "class_names", "options", "tower", "clip")
    missing = [name for name in needed if not isinstance(config, dict) or name not in config]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if config["format"] != FORMAT:
        raise InputError(f"{path} has format {config['format']}; this version of m2clip reads format {FORMAT}")
    _check_types(path, config)
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: a missing, truncated or corrupted file, or another kind of file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no intact safetensors file: {str(error).splitlines()[0]}") from error


def _check_types(path: Path, config: dict[str, Any]) -> None:
    names, clip = config["class_names"], config["clip"]
    for field, fits in (
        ("method", isinstance(config["method"], str)),
        ("num_frames", type(config["num_frames"]) is int and 0 < config["num_frames"] <= _MOST_FRAMES),
        ("class_names", isinstance(names, list) and all(isinstance(name, str) for name in names)),
        ("options", isinstance(config["options"], dict)),
        ("tower", isinstance(config["tower"], dict)),
        ("clip", clip is None or (isinstance(clip, dict) and clip.keys() == {"name", "pretrained"})),
        ("clip", not isinstance(clip, dict) or all(isinstance(value, (str, type(None))) for value in clip.values())),
    ):
        if not fits:
            raise InputError(f"{path}: {field} is not what it should be: the file is damaged or was changed")


def weights_hash(model: Any) -> str:
    """SHA-256 over names and values of all weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # Bytes as they are: bf16 has no numpy type.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_equal(folder: Path, what: str, saved: dict[str, Any], given: dict[str, Any]) -> None:
    differing = [f"{k} {saved.get(k)!r} (given: {given.get(k)!r})" for k in given if saved.get(k) != given.get(k)]
    if differing:
        raise InputError(f"{folder} was trained on another {what}: {', '.join(differing)}")


def _name_difference(folder: Path, saved: list[str], given: list[str]) -> str:
    if len(saved) != len(given):
        return f"{folder} was trained on {len(saved)} classes, the given label set has {len(given)}"
    i = next(i for i, (a, b) in enumerate(zip(saved, given, strict=True)) if a != b)
    return f"class {i} is {saved[i]!r} in {folder} and {given[i]!r} in the given label set"
