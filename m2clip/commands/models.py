"""Models and data sets as the command line names them: run folders, frozen CLIP, lists of videos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.parsing import DEFAULT_CLIP
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.data.annotations import Annotations
    from m2clip.data.clips import ClipSettings
    from m2clip.methods import VideoModel

FROZEN = "frozen"


def run_config(args: argparse.Namespace, folder: Path | None) -> RunConfig:
    """The settings of a run folder (the defaults without one), overruled by what the command line says.

    Args:
        args: parsed arguments; those that are absent or None change nothing.
        folder: run folder, or None for frozen CLIP.
    """
    from m2clip.config import load_config

    saved = folder / "config.yaml" if folder is not None else None
    config = load_config(saved if saved is not None and saved.is_file() else None)
    for part, names in (
        (config.eval, ("clips", "crops", "on_error", "batch_size")),
        (config.data, ("sampling", "stride", "normalize", "reader", "workers")),
    ):
        for name in names:
            value = getattr(args, name, None)
            if value is not None:
                setattr(part, name, value)
    return config


def open_run(folder: Path, args: argparse.Namespace, class_names: list[str] | None = None) -> VideoModel:
    """The model of a run folder, on the CLIP it was trained on or the one that --clip and --pretrained name.

    Raises:
        InputError: no run folder, damaged files, a CLIP that does not fit, or class names other than the given ones.
    """
    import m2clip

    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; m2clip train writes one")
    if args.clip is None and args.pretrained is None:
        return m2clip.load_adapters(folder, class_names=class_names)
    from m2clip.checkpoint import read_adapter_config

    saved = read_adapter_config(folder)["clip"] or {"name": DEFAULT_CLIP, "pretrained": "openai"}
    name = args.clip or saved["name"]
    clip = m2clip.load_clip(name, args.pretrained or saved["pretrained"])
    return m2clip.load_adapters(folder, clip, class_names=class_names)


def open_frozen(args: argparse.Namespace, class_names: Sequence[str], frames: int) -> VideoModel:
    """Frozen CLIP, from --clip and --pretrained."""
    import m2clip

    name = args.clip or DEFAULT_CLIP
    clip = m2clip.load_clip(name, args.pretrained or "openai")
    return m2clip.create_model("clip", clip, class_names=list(class_names), num_frames=frames)


def frozen_twin(model: VideoModel) -> VideoModel:
    """Frozen CLIP for the same label set and clips as a trained model, on the CLIP that it was trained on.

    Raises:
        InputError: the model does not say which CLIP that is.
    """
    import m2clip

    if not model.clip_source:
        raise InputError("the run does not name its CLIP: give --clip and --pretrained")
    clip = m2clip.load_clip(**model.clip_source)
    return m2clip.create_model(
        "clip", clip, class_names=model.class_names, num_frames=model.num_frames, prompt=model.prompt
    )


def display_name(model: VideoModel) -> str:
    """Name of a model in tables."""
    names = {"m2clip": "M2-CLIP", "clip": "frozen CLIP"}
    return names.get(model.method, model.method)


def place(model: VideoModel, device: Any, precision: str) -> VideoModel:
    """The model on its device; on a GPU the frozen weights are kept in half precision where that is asked for."""
    model = model.to(device)
    if precision != "fp32" and device.type == "cuda":
        model.set_precision(precision)
    return model


def clip_settings(config: RunConfig, model: VideoModel) -> ClipSettings:
    """How views are drawn for a model."""
    from m2clip.predict import default_settings

    data = config.data
    return default_settings(
        model,
        sampling=data.sampling,
        stride=data.stride,
        reader=data.reader,
        isolate=data.isolate,
        normalize=data.normalize,
        clips=config.eval.clips,
        crops=config.eval.crops,
    )


def read_list(args: argparse.Namespace, class_names: str | Sequence[str] | None) -> Annotations:
    """The videos that --list, --root, --format and --split name."""
    from m2clip.data.annotations import load_annotations

    return load_annotations(args.list, root=args.root, format=args.format, class_names=class_names, split=args.split)
