"""What is installed, and how large a model is: parameters by part, multiply-adds per view, counted without weights."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from typing import Any

from m2clip.errors import InputError
from m2clip.sizes import AnySize, size_text

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "av",
    "eva-decord",
    "decord",
    "safetensors",
    "triton",
)


def environment() -> dict[str, Any]:
    """Versions, devices, the compiled extensions and every kernel backend's state as JSON types."""
    import torch

    from m2clip import __version__
    from m2clip.kernels.build_info import build_info, cuda_build_info
    from m2clip.kernels.dispatch import backend_states

    versions: dict[str, str | None] = {"m2clip": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    backends = {
        name: {"available": state.available, "reason": state.reason} for name, state in backend_states().items()
    }
    return {
        "versions": versions,
        "devices": devices,
        "build": build_info(),
        "cuda_build": cuda_build_info(),
        "backends": backends,
        "verified": _verified(),
    }


def _verified() -> dict[str, Any]:
    """What is known of the kernels on the GPUs of this machine: {"folder", "kernels": a list}."""
    import torch

    from m2clip.kernels.verification import choices, store
    from m2clip.kernels.verification.keys import device_facts

    devices = {device_facts("cuda", index): torch.device("cuda", index) for index in range(torch.cuda.device_count())}
    kernels = []
    for key, verdict in sorted(store.all_known().items(), key=str):
        device = devices.get(key.device)
        if device is None or key != choices.key_of(key.call, key.backend, device):
            continue  # of another machine, or of an earlier installation
        kernels.append(
            {
                "call": str(key.call),
                "backend": key.backend,
                "device": key.device.name,
                "passed": verdict.passed,
                "error": verdict.error,
                "message": verdict.message,
                "when": datetime.fromtimestamp(verdict.when, tz=timezone.utc).isoformat(timespec="seconds"),
                "measured": choices.measured_winner(key.call, device) or None,
            }
        )
    return {"folder": str(store.folder() or ""), "kernels": kernels}


def count_parameters(model: Any) -> dict[str, dict[str, int]]:
    """Trained and frozen parameters of every part of a model, each tensor once.

    Args:
        model: a video model.

    Returns:
        part (name of the module right below the model) -> {"trained", "frozen"}, and "total".
    """
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = counts.setdefault(name.split(".")[0], {"trained": 0, "frozen": 0})
        part["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    counts["total"] = {kind: sum(part[kind] for part in counts.values()) for kind in ("trained", "frozen")}
    return counts


def count_multiply_adds(function: Callable[[], Any]) -> int:
    """Multiply-adds of the matrix products, convolutions and attentions that a call runs (half the counted FLOPs).

    Args:
        function: called once without gradient; tensors on the meta device cost nothing.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() // 2


def model_size(
    clip: str,
    frames: Sequence[int],
    class_names: Sequence[str],
    method: str = "m2clip",
    preset: str | None = None,
    image_size: AnySize | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Parameters and multiply-adds of a model that is built on the meta device: no weights, no memory, no download.

    Args:
        clip: as for `m2clip.load_clip`.
        frames: clip lengths T to count.
        class_names: the label set.
        method: as for `m2clip.create_model`.
        preset: as for `m2clip.create_model`.
        image_size: as for `m2clip.load_clip`.
        options: as for `m2clip.create_model`.

    Returns:
        {"image_size": "HEIGHTxWIDTH"; "parameters": of the first T, as `count_parameters`; "multiply_adds":
        [{"frames", "visual_per_view", "text_per_label_set"}]}. The text side is counted for the whole label set, its
        prompts cut to the longest where the text tower allows that; OpenAI's tokenizer stands for others.

    Raises:
        InputError: unknown architecture, method or option.
    """
    import torch

    from m2clip.methods import create_model, find_method
    from m2clip.towers.loading import bare_clip

    parameters: dict[str, dict[str, int]] = {}
    rows = []
    base = bare_clip(clip, image_size)
    for number in frames:
        with torch.device("meta"):
            model = create_model(
                method, base, class_names=list(class_names), num_frames=number, preset=preset, **options
            )
        model.eval()
        video = torch.empty(1, number, 3, *model.image_size, device="meta")
        rows.append(
            {
                "frames": number,
                "visual_per_view": count_multiply_adds(partial(model.encode, video)),
                "text_per_label_set": count_multiply_adds(model.text_features),
            }
        )
        parameters = parameters or count_parameters(model)
    return {
        "clip": clip,
        "method": method,
        "preset": preset or find_method(method).default_preset,
        "image_size": size_text(model.image_size),
        "classes": len(class_names),
        "parameters": parameters,
        "multiply_adds": rows,
    }


def list_clips() -> list[dict[str, Any]]:
    """Every architecture of open_clip, with what each method says of it; nothing is downloaded.

    Returns:
        {"clip": name, "refused": why no method can have it, or None, "methods": {method: why it cannot with the options
        of its default preset, or None}}.
    """
    import open_clip
    import torch

    from m2clip.methods import METHODS, create_model
    from m2clip.towers.architectures import build, named_architecture
    from m2clip.towers.tokenizers import byte_pairs
    from m2clip.towers.vision import tower_signature

    found: list[dict[str, Any]] = []
    for name in open_clip.list_models():
        row: dict[str, Any] = {"clip": name, "refused": None, "methods": {}}
        found.append(row)
        try:
            clip = build(named_architecture(name, []), "meta", depth=1)
            tower_signature(clip)
        except InputError as error:
            row["refused"] = str(error)
            continue
        clip.m2clip_tokenizer = byte_pairs(clip)
        for method in METHODS:
            try:
                with torch.device("meta"):
                    create_model(method, clip, ["a"])
                row["methods"][method] = None
            except InputError as error:
                row["methods"][method] = str(error)
    return found


def label_set_of_size(size: int) -> list[str]:
    """Class names for counting: the first bundled label set of that size, else invented names.

    Raises:
        InputError: fewer than one class.
    """
    from m2clip.data.lists.label_sets import LABEL_SETS, load_class_names

    if size < 1:
        raise InputError(f"{size} classes: a model needs at least one")
    bundled = next((name for name, count in LABEL_SETS.items() if count == size), None)
    return load_class_names(bundled) if bundled else [f"action {number}" for number in range(size)]
