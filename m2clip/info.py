"""What is installed, and how large a model is: parameters by part and multiply-adds a view, counted without weights."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any

from m2clip.errors import InputError

PACKAGES = ("torch", "torchvision", "open_clip_torch", "av", "decord", "torchmetrics", "safetensors", "triton")


def environment() -> dict[str, Any]:
    """Versions, devices, the compiled extensions and every kernel backend's state as JSON types."""
    import torch

    import m2clip
    from m2clip.kernels.build_info import build_info, cuda_build_info
    from m2clip.kernels.dispatch import backend_states

    versions: dict[str, str | None] = {"m2clip": m2clip.__version__, "python": platform.python_version()}
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
    }


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
    **options: Any,
) -> dict[str, Any]:
    """Parameters and multiply-adds of a model that is built on the meta device: no weights, no memory, no download.

    Args:
        clip: open_clip architecture, or "tiny".
        frames: clip lengths T to count.
        class_names: the label set.
        method, preset, options: as for `m2clip.create_model`.

    Returns:
        {"parameters": of the first T, as `count_parameters`; "multiply_adds": [{"frames", "visual_per_view",
        "text_per_label_set"}]}. The text side is counted for the whole label set, its prompts cut to the longest.

    Raises:
        InputError: unknown architecture, method or option.
    """
    import torch

    import m2clip
    from m2clip.methods import METHODS

    parameters: dict[str, dict[str, int]] = {}
    rows = []
    base = m2clip.load_clip(clip, None, "meta")
    for number in frames:
        with torch.device("meta"):
            model = m2clip.create_model(
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
        "preset": preset or METHODS[method].default_preset,
        "classes": len(class_names),
        "parameters": parameters,
        "multiply_adds": rows,
    }


def label_set_of_size(size: int) -> list[str]:
    """Class names for counting: the first bundled label set of that size, else invented names.

    Raises:
        InputError: fewer than one class.
    """
    from m2clip.data.label_sets import LABEL_SETS, load_class_names

    if size < 1:
        raise InputError(f"{size} classes: a model needs at least one")
    bundled = next((name for name, count in LABEL_SETS.items() if count == size), None)
    return load_class_names(bundled) if bundled else [f"action {number}" for number in range(size)]
