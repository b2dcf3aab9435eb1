"""Configurations as files: YAML that holds what differs from the default, dotted overrides, one line for mistakes."""

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
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from m2clip.config_fields import (
    ABOVE_ZERO,
    AT_LEAST,
    BELOW_ONE,
    DataConfig,
    EpisodesConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from m2clip.errors import InputError
from m2clip.files import replacing

__all__ = [
    "DataConfig",
    "EpisodesConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "bundled_configs",
    "flatten",
    "load_config",
    "save_config",
    "validate",
]


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
        text = _read(file)
        _refuse_classes(text, str(file))
        if text.strip():
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
        _refuse_classes(argument.split("=", 1)[1], f"override {override!r}", plain=True)
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
        if value is None and type(None) not in typing.get_args(_types()[name]):
            raise InputError(f"{name} must be {_describe(_types()[name])}, not null")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}: it must be a finite number")
    for name, least in AT_LEAST.items():
        if values[name] < least:
            raise InputError(f"{name} is {values[name]}: it must be {least} or more")
    for name in ABOVE_ZERO:
        if values[name] is not None and values[name] <= 0:
            raise InputError(f"{name} is {values[name]}: it must be above 0")
    for name in BELOW_ONE:
        if values[name] >= 1:
            raise InputError(f"{name} is {values[name]}: it must be below 1")
    if config.optim.warmup_epochs > config.optim.epochs:
        raise InputError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs}, more than optim.epochs ({config.optim.epochs}): "
            "warm-up must end within training"
        )
    if config.episodes.select_by == "test" and config.episodes.test is None:
        raise InputError("episodes.select_by is test, but episodes.test is not set: name the list of test videos")
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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # What the libraries below do not expect in a file, such as a number of thousands of digits.
        raise InputError(f"{source}: not a configuration file: {' '.join(str(error).split())}") from None
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


def _refuse_classes(text: str, source: str, plain: bool = False) -> None:
    """Refuse text that names a class: the parser would import it, and with it any module that lies about.

    plain: let text that is not YAML pass, which the parser takes for a string, such as a file name with braces.

    Raises:
        InputError: there is a key "class_path", however it is written, or the text is not YAML.
    """
    import yaml

    try:
        left, seen = [yaml.safe_load(text)], set()
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if plain and isinstance(error, yaml.YAMLError):
            return
        raise InputError(f"{source}: not a configuration file: {' '.join(str(error).split())}") from None
    while left:
        value = left.pop()
        # A value may be within itself, and be named any number of times.
        if not isinstance(value, (dict, list)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict) and "class_path" in value:
            raise InputError(f"{source}: class_path is no field; a configuration names no classes")
        left.extend(value.values() if isinstance(value, dict) else value)


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
