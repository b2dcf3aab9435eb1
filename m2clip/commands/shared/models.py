"""Models and data sets as the command line names them: run folders, frozen CLIP, lists of videos."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2clip.commands.shared.parsing import DEFAULT_CLIP, FRAMES
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.data.lists.annotations import Annotations
    from m2clip.methods import VideoModel

FROZEN = "frozen"


def run_config(args: argparse.Namespace, folder: Path | None) -> RunConfig:
    """The settings of a run folder (the defaults without one), overruled by what the command line says.

    Its views are those saved with its adapters, so that these alone, without config.yaml, give the same scores.

    Args:
        args: parsed arguments; those that are absent or None change nothing.
        folder: run folder, or None for frozen CLIP.
    """
    from m2clip.checkpoints.adapters import read_adapter_config
    from m2clip.config import load_config

    saved = folder / "config.yaml" if folder is not None else None
    config = load_config(saved if saved is not None and saved.is_file() else None)
    config.data.normalize = "model"
    views = read_adapter_config(folder)["views"] if folder is not None else {}
    for part, names in (
        (config.eval, ("clips", "crops", "on_error", "batch_size")),
        (config.data, ("sampling", "stride", "normalize", "transform", "reader", "workers")),
    ):
        for name in names:
            value = getattr(args, name, None)
            if value is None and name != "normalize":  # whose numbers the model has
                value = views.get(name)
            if value is not None:
                setattr(part, name, value)
    return config


def open_run(folder: Path, args: argparse.Namespace, class_names: list[str] | None = None) -> VideoModel:
    """The model of a run folder, on the CLIP it was trained on or the one that --clip and --pretrained name.

    Raises:
        InputError: no run folder, damaged files, a CLIP that does not fit, or class names other than the given ones.
    """
    _check_run(folder)
    for option in ("frames", "image_size"):
        if getattr(args, option, None) is not None:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is for frozen CLIP: {folder} takes clips like those it was trained on")
    from m2clip.checkpoints.adapters import load_adapters, read_adapter_config

    if args.clip is None and args.pretrained is None and args.tokenizer is None:
        return load_adapters(folder, class_names=class_names)
    from m2clip.towers.loading import load_clip

    saved = read_adapter_config(folder)["clip"] or {"name": DEFAULT_CLIP, "pretrained": "openai"}
    name = args.clip or saved["name"]
    _check_pretrained(args, name)
    if args.tokenizer is not None:
        load_clip(name, None, "meta", args.tokenizer)  # which leaves the tokenizer on this machine
    # What only a file names is not downloaded.
    weights, tokenizer = args.pretrained or saved["pretrained"], args.tokenizer or saved.get("tokenizer")
    size = saved.get("image_size")
    clip = load_clip(name, weights, tokenizer=tokenizer, offline=args.pretrained is None, image_size=size)
    return load_adapters(folder, clip, class_names=class_names)


def run_class_names(folder: Path) -> list[str]:
    """The class names of a run folder, whose model takes longer to load.

    Raises:
        InputError: no run folder, or damaged files.
    """
    from m2clip.checkpoints.adapters import read_adapter_config

    _check_run(folder)
    names: list[str] = read_adapter_config(folder)["class_names"]
    return names


def _check_run(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; m2clip train writes one")


def open_labelled(args: argparse.Namespace, folder: Path | None, names: list[str] | None) -> VideoModel:
    """The model of a run folder, or frozen CLIP without one, with the names of `given_names`; errors as for these."""
    model = open_run(folder, args) if folder else open_frozen(args, names or [])
    if names is not None and names != model.class_names:
        model.set_class_names(names)
    return model


def candidates(args: argparse.Namespace, model: VideoModel) -> list[tuple[str, VideoModel]]:
    """A model to score by its name, with --with-frozen frozen CLIP beside it."""
    twins = [frozen_twin(model)] if args.with_frozen and args.run_folder != FROZEN else []
    return [(display_name(one), one) for one in (model, *twins)]


def open_frozen(args: argparse.Namespace, class_names: Sequence[str]) -> VideoModel:
    """Frozen CLIP, from --clip, --pretrained, --image-size and --frames.

    Raises:
        InputError: a CLIP that cannot be opened.
    """
    from m2clip.methods import create_model
    from m2clip.towers.loading import load_clip

    name = args.clip or DEFAULT_CLIP
    _check_pretrained(args, name)
    clip = load_clip(name, args.pretrained or "openai", tokenizer=args.tokenizer, image_size=args.image_size)
    return create_model("clip", clip, class_names=list(class_names), num_frames=args.frames or FRAMES)


def _check_pretrained(args: argparse.Namespace, name: str) -> None:
    if name == "tiny" and args.pretrained is not None:
        raise InputError("--pretrained says nothing with the CLIP 'tiny', whose weights are bundled: drop it")


def given_names(args: argparse.Namespace, folder: Path | None) -> list[str] | None:
    """The class names of --labels or --classes, None where they are those of a run folder.

    A file or a label set alone behind --labels is read; beside other names it can only be a mistake.

    Raises:
        InputError: neither names nor a run folder, a file that is none of class names, a file among names, or names
            with commas between them.
    """
    from m2clip.data.lists.label_sets import LABEL_SETS, load_class_names

    if args.labels is None:
        if folder is None and not args.classes:
            raise InputError("which classes? Give --labels, --classes, or a run folder with --run")
        return load_class_names(args.classes) if args.classes else None
    source = next((name for name in args.labels if name.lower() in LABEL_SETS or _is_file(name, args.labels)), None)
    if source is None:
        if len(args.labels) == 1 and "," in args.labels[0]:
            raise InputError(f"--labels: {args.labels[0]!r} is one class; put blanks between classes, no commas")
        return list(args.labels)
    if len(args.labels) > 1:
        raise InputError(f"--labels: {source!r} names a file or a label set, not a class: give it alone, or drop it")
    return load_class_names(source)


def _is_file(name: str, names: Sequence[str]) -> bool:
    """Whether a file or folder is meant; a folder beside names may be one of the classes'."""
    named = name.lower().endswith((".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml"))
    return named or os.path.isfile(name) or (os.path.isdir(name) and (len(names) == 1 or os.sep in name))


def frozen_twin(model: VideoModel) -> VideoModel:
    """Frozen CLIP for the same label set and clips as a trained model, on the CLIP that it was trained on.

    Raises:
        InputError: the model does not say which CLIP that is.
    """
    from m2clip.methods import create_model
    from m2clip.towers.loading import load_clip

    if not model.clip_source:
        raise InputError("the run does not name its CLIP: give --clip and --pretrained")
    clip = load_clip(**model.clip_source, offline=True)
    return create_model("clip", clip, class_names=model.class_names, num_frames=model.num_frames, prompt=model.prompt)


def display_name(model: VideoModel) -> str:
    """Name of a model in tables."""
    names = {"m2clip": "M2-CLIP", "clip": "frozen CLIP"}
    return names.get(model.method, model.method)


def read_list(args: argparse.Namespace, class_names: str | Sequence[str] | None) -> Annotations:
    """The videos that --list, --root, --format and --split name."""
    from m2clip.data.lists.annotations import load_annotations

    return load_annotations(
        args.list,
        root=args.root,
        format=args.format,
        class_names=class_names,
        split=args.split,
        allow_mismatched_folders=args.allow_mismatched_folders,
    )
