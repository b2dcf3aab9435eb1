"""Configuration of a run: typed dataclasses, YAML files that hold what differs from the default, dotted overrides."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from m2clip.errors import InputError
from m2clip.files import replacing


@dataclass
class ModelConfig:
    """Which model: method, open_clip architecture and weights, preset, and further options of the method.

    Attributes:
        method: a name `m2clip.create_model` knows; "clip" is frozen CLIP, which has nothing to train.
        clip: open_clip architecture, or "tiny" for the bundled CLIP.
        pretrained: open_clip tag or path of a local checkpoint; null for "tiny".
        preset: "official" (the authors' code) or "paper" (the equations) for m2clip; null is the method's own default.
        options: keyword arguments of the method's own configuration, such as {width: 384, placement: both}.
    """

    method: str = "m2clip"
    clip: str = "ViT-B-16-quickgelu"
    pretrained: str | None = "openai"
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Which videos, and how clips are drawn from them.

    Attributes:
        train, val: list files or folders of videos.
        train_split, val_split: which part of them, where the format has parts ("train1", "test1").
        root: folder that relative paths in the lists start from; null is the list's own folder.
        format: annotation format, or "auto".
        classes: a bundled label set ("k400") or a file of class names; null takes the names from the lists.
        num_frames: frames of a clip.
        sampling: "uniform" (one frame from each of num_frames equal segments) or "dense" (every stride-th frame).
        stride: distance between the frames of a dense clip, in frames.
        reader: video reader, or "auto".
        workers: decoding processes of each training process.
        augmentation: "crop_flip" (short-side jitter, random crop), "randaugment" (and random resized crop),
            "multi_scale_crop" (crops of four sizes at five places, colour jitter, grey clips) or "none".
        flip: whether clips are mirrored at random; not where class names tell left from right.
        normalize: channel statistics, "clip" or "imagenet".
    """

    train: str | None = None
    train_split: str | None = None
    val: str | None = None
    val_split: str | None = None
    root: str | None = None
    format: str = "auto"
    classes: str | None = None
    num_frames: int = 8
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 16
    reader: str = "auto"
    workers: int = 4
    augmentation: Literal["crop_flip", "randaugment", "multi_scale_crop", "none"] = "crop_flip"
    flip: bool = True
    normalize: Literal["clip", "imagenet"] = "clip"


@dataclass
class OptimConfig:
    """How the trained tensors are optimised.

    Attributes:
        epochs, warmup_epochs: length of training and of the linear warm-up, in epochs.
        schedule: "cosine_after_warmup", or "cosine_under_warmup": a cosine over all epochs, its beginning warmed up.
        lr_floor: where the cosine ends, as a share of the learning rate.
        batch_size: clips of one process in one forward pass.
        lr: learning rate for 256 clips a step; scaled linearly with batch_size x processes x accumulate.
        text_lr_scale: factor on the learning rate of text adapters.
        weight_decay: AdamW's; whether biases have it is up to the method.
        beta2: AdamW's, the decay of the running mean of squared gradients.
        accumulate: forward passes of one optimiser step.
        clip_grad: largest norm of all gradients together; null does not clip.
        precision: of the frozen weights and of what the towers compute: "fp32", "bf16" or "fp16" (with loss scaling, on
            GPUs). Trained tensors, heads and losses are fp32 in any case.
        compile: "none", or the mode in which torch.compile compiles forward and backward pass: "default",
            "reduce-overhead" or "max-autotune". The first step then takes a minute or more.
        cuda_graph: record forward and backward pass once as a CUDA graph and replay it in every step: for small
            batches, where launching kernels takes longer than running them. One process, one GPU.
    """

    epochs: int = 12
    warmup_epochs: float = 2.0
    schedule: Literal["cosine_after_warmup", "cosine_under_warmup"] = "cosine_after_warmup"
    lr_floor: float = 0.0
    batch_size: int = 36
    lr: float = 1e-3
    text_lr_scale: float = 0.5
    weight_decay: float = 1e-2
    beta2: float = 0.999
    accumulate: int = 1
    clip_grad: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    cuda_graph: bool = False


@dataclass
class EvalConfig:
    """How a model is scored.

    Attributes:
        clips: clips of a video along time.
        crops: crops of a clip: 1, 3, or "m2clip4" (the authors' four-crop code).
        on_error: what an unreadable video does: "raise", "skip" or "wrong" (counts as an error).
        batch_size: views of one forward pass.
    """

    clips: int = 1
    crops: Literal[1, 3, "m2clip4"] = 1
    on_error: Literal["raise", "skip", "wrong"] = "wrong"
    batch_size: int = 16


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        output: the run folder.
        seed: of data order, clips, augmentation, masked words, dropout and initial weights.
        log_every: steps between two lines of metrics.csv.
        checkpoint_every: steps between two checkpoints; 0 writes one at the end of each epoch only.
        keep_checkpoints: how many of the newest checkpoints stay.
        validate_every: epochs between two validations (the last epoch is always validated); 0 never.
        keep: which adapters the run folder offers for use: "last", or "best" by validation top-1.
        timeout: how long a process waits for the others, in seconds.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: str = "runs/m2clip"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 1
    keep: Literal["last", "best"] = "last"
    timeout: float = 1800.0


_AT_LEAST = {
    "data.num_frames": 1,
    "data.stride": 1,
    "data.workers": 0,
    "optim.epochs": 1,
    "optim.warmup_epochs": 0,
    "optim.batch_size": 1,
    "optim.text_lr_scale": 0,
    "optim.weight_decay": 0,
    "optim.lr_floor": 0,
    "optim.beta2": 0,
    "optim.accumulate": 1,
    "eval.clips": 1,
    "eval.batch_size": 1,
    "seed": 0,
    "log_every": 1,
    "checkpoint_every": 0,
    "keep_checkpoints": 1,
    "validate_every": 0,
}
_ABOVE_ZERO = ("optim.lr", "optim.clip_grad", "timeout")
_BELOW_ONE = ("optim.lr_floor", "optim.beta2")


def bundled_configs() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("m2clip") / "configs"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration: the defaults, then the file, then the overrides in order.

    Args:
        path: a YAML file or the name of a bundled recipe ("m2clip_k400_b16_8f"); None starts from the defaults.
        overrides: "section.field=value" strings, such as "optim.lr=5e-4"; leading dashes are allowed.

    Raises:
        InputError: file not found or not YAML, unknown field, wrong type, impossible value.
    """
    parser = _parser()
    arguments = []
    if path is not None:
        file = _find(path)
        if _read(file).strip():
            arguments.append(f"--config={file}")
            # Parsed by itself first, so that an error in the file is not blamed on an override.
            _parse(parser, arguments, str(file))
    for override in overrides:
        argument = "--" + str(override).lstrip("-")
        if "=" not in argument:
            raise InputError(
                f"override {override!r} has no value: write it as section.field=value, such as optim.lr=5e-4"
            )
        name = argument[2:].split("=", 1)[0]
        _check_known(name, f"override {override!r}")
        arguments.append(argument)
    config = _parse(parser, arguments, "overrides")
    validate(config)
    return config


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> Path:
    """Write every field as YAML, under a temporary name first; returns the path."""
    import yaml

    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")
    return path


def flatten(config: Any) -> dict[str, Any]:
    """Dotted names and values of all fields; `model.options` stays one value."""
    return dict(_leaves(config, ""))


def validate(config: RunConfig) -> None:
    """Check what types alone cannot say.

    Raises:
        InputError: naming the first impossible value and what is allowed.
    """
    values = flatten(config)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}: it must be a finite number")
    for name, least in _AT_LEAST.items():
        if values[name] < least:
            raise InputError(f"{name} is {values[name]}: it must be {least} or more")
    for name in _ABOVE_ZERO:
        if values[name] is not None and values[name] <= 0:
            raise InputError(f"{name} is {values[name]}: it must be above 0")
    for name in _BELOW_ONE:
        if values[name] >= 1:
            raise InputError(f"{name} is {values[name]}: it must be below 1")
    if config.optim.warmup_epochs > config.optim.epochs:
        raise InputError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs}, more than optim.epochs ({config.optim.epochs}): "
            "warm-up must end within training"
        )
    _check_method(config.model)


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for entry in dataclasses.fields(value):
        inner = getattr(value, entry.name)
        if dataclasses.is_dataclass(inner):
            yield from _leaves(inner, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", inner


@lru_cache(maxsize=1)
def _types() -> dict[str, Any]:
    """Dotted name of every section and field, with its type."""
    found: dict[str, Any] = {}

    def visit(kind: Any, prefix: str) -> None:
        for name, hint in typing.get_type_hints(kind).items():
            found[prefix + name] = hint
            if dataclasses.is_dataclass(hint):
                visit(hint, f"{prefix}{name}.")

    visit(RunConfig, "")
    return found


def _describe(hint: Any) -> str:
    """What a field accepts, in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else _describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a mapping of names to values"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def _parser() -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig)
    parser.add_argument("--config", action="config")
    return parser


def _parse(parser: Any, arguments: list[str], source: str) -> RunConfig:
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(_one_line(str(error), source)) from None
    values = parsed.as_dict()
    values.pop("config", None)
    return _build(RunConfig, values, "", source)


def _build(kind: Any, values: Any, prefix: str, source: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{source}: {prefix[:-1]} must be a mapping of names to values, not {values!r}")
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: _build(hints[name], value, f"{prefix}{name}.", source)
            if dataclasses.is_dataclass(hints[name])
            else value
            for name, value in values.items()
        }
    )


def _one_line(message: str, source: str) -> str:
    """jsonargparse's report as one line that names the field and what it accepts."""
    if match := re.match(r"Parser key \"([^\"]+)\":", message):
        name = match[1]
        given = re.search(r"(?:Got|Given) value: (.*)", message)
        got = f", not {given[1].strip()!r}" if given else ""
        return f"{source}: {name} must be {_describe(_types().get(name, str))}{got}"
    if match := re.match(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'", message):
        name = f"{match[1]}.{match[2]}" if match[1] else match[2]
        return _unknown(name, source)
    return f"{source}: not a configuration file: " + " ".join(message.split())


def _unknown(name: str, source: str) -> str:
    section, _, last = name.rpartition(".")
    siblings = [other for other in _types() if other.rpartition(".")[0] == section]
    close = difflib.get_close_matches(name, siblings, n=1) or [o for o in _types() if o.rpartition(".")[2] == last]
    if close:
        return f"{source}: unknown field {name}: did you mean {close[0]}?"
    known = siblings or [other for other in _types() if "." not in other]
    return f"{source}: unknown field {name}: use one of {', '.join(known)}"


def _check_known(name: str, source: str) -> None:
    if name not in _types() and not name.startswith("model.options."):
        raise InputError(_unknown(name, source))


def _check_method(model: ModelConfig) -> None:
    from m2clip.methods import METHODS

    def check(name: str, value: str, choices: Iterable[str]) -> None:
        if value not in choices:
            raise InputError(f"{name} is {value!r}: use one of {', '.join(choices)}")

    check("model.method", model.method, METHODS)
    method = METHODS[model.method]
    if model.preset is not None:
        check("model.preset", model.preset, method.presets)
    for option in model.options:
        if option not in (known := [entry.name for entry in dataclasses.fields(method.options)]):
            raise InputError(f"unknown field model.options.{option}: use one of {', '.join(known)}")


def _find(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    bundled = bundled_configs()
    name = os.fspath(path)
    if name in bundled:
        return Path(str(resources.files("m2clip") / "configs" / f"{name}.yaml"))
    if file.is_dir() and (file / "config.yaml").is_file():
        return file / "config.yaml"
    raise InputError(f"configuration {name!r} is neither a file nor a bundled recipe ({', '.join(bundled)})")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a text file: {error}") from None
