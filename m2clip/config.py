"""Configurations as files: YAML that holds what differs from the default, dotted overrides, one line for mistakes."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from m2clip.config_fields import ModelConfig, RunConfig, flatten, settings_of
from m2clip.errors import InputError
from m2clip.files.disk import is_file, read_text, write_text

_MOST_BYTES = 1 << 16  # twenty times the longest recipe
_MOST_VALUES = 5000
_OPTIONS = "model.options."  # whose names are the method's


def bundled_configs() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("m2clip") / "configs"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration: the defaults, then the file, then the overrides in order.

    Args:
        path: a YAML file or the name of a bundled recipe ("m2clip_k400_b16_8f"); None starts from the defaults.
        overrides: "section.field=value" strings, such as "optim.lr=5e-4"; leading dashes are allowed. With another
            method than the file's, the file's `model.options` do not count.

    Raises:
        InputError: file not found or not YAML, unknown field, wrong type, impossible value.
    """
    config = RunConfig()
    if path is not None:
        file = _find(path)
        for name, value in _read(file).items():
            _assign(config, str(name), value, str(file))
    given = [str(override).lstrip("-").partition("=") for override in overrides]
    if any(name == "model.method" and text != config.model.method for name, _, text in given):
        config.model.options = {}
    for override, (name, equals, text) in zip(overrides, given, strict=True):
        if not equals:
            raise InputError(
                f"override {override!r} has no value: write it as section.field=value, such as optim.lr=5e-4"
            )
        _assign(config, name, text, "overrides")
    _read_options(config.model)
    validate(config)
    return config


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> Path:
    """Write every field as YAML, under a temporary name first; returns the path."""
    return write_text(config_text(config), path)


def config_text(config: RunConfig) -> str:
    """Every field as YAML."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def validate(config: RunConfig) -> None:
    """Check types, ranges, and what fields say together; fields that may be written in several ways get one form.

    Raises:
        InputError: naming the first impossible value and what is allowed.
    """
    values = flatten(config)
    for name, setting in settings_of(RunConfig).items():
        value = values[name]
        if setting.read is not None and value is not None:
            _set(config, name, value := setting.read(value, name))
        _check_type(name, value)
        if value == "":
            raise InputError(f"{name} is empty: give a value" + (", or null" if setting.default is None else ""))
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {_shown(value)}: it must be a finite number")
        if setting.at_least is not None and value < setting.at_least:
            raise InputError(f"{name} is {_shown(value)}: it must be {setting.at_least} or more")
        if setting.at_most is not None and value > setting.at_most:
            raise InputError(f"{name} is {_shown(value)}: it must be {setting.at_most} or less")
        if setting.above is not None and value is not None and value <= setting.above:
            raise InputError(f"{name} is {_shown(value)}: it must be above {setting.above}")
        if setting.below is not None and value >= setting.below:
            raise InputError(f"{name} is {_shown(value)}: it must be below {setting.below}")
    if config.optim.warmup_epochs > config.optim.epochs:
        raise InputError(
            f"optim.warmup_epochs is {config.optim.warmup_epochs}, more than optim.epochs ({config.optim.epochs}): "
            "warm-up must end within training"
        )
    if config.episodes.select_by == "test" and config.episodes.test is None:
        raise InputError("episodes.select_by is test, but episodes.test is not set: name the list of test videos")
    _check_method(config.model)


def read_yaml(text: str, source: str) -> Any:
    """What YAML says, where 1e-3 is a number and a date is text.

    Args:
        text: the YAML.
        source: where it is from, for the message.

    Raises:
        InputError: it stands for more values than a configuration has, as aliases within aliases do.
        ValueError: it is no YAML, or tags an object.
    """
    import yaml

    try:
        loader = _loader()(text)
        try:
            node = loader.get_single_node()
            # Counted before it is built, as building resolves what is merged.
            if node is not None and _count(node, {}) > _MOST_VALUES:
                raise InputError(f"{source}: holds more than {_MOST_VALUES} values, or aliases that stand for as many")
            _check_names(node, source, set())
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # What the library does not expect is among it, such as a number of thousands of digits.
        raise ValueError(" ".join(str(error).split())) from None


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1, but for numbers like 1e-3 and dates."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)
    return Loader


def _count(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, where what is named again counts again; without end where it is in itself."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # while it is counted
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _check_names(node: Any, source: str, seen: set[int]) -> None:
    """InputError where a mapping has a name twice: YAML lets the last of them win."""
    if id(node) in seen or not isinstance(getattr(node, "value", None), list):
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for entry in node.value:
        name, *inner = entry if isinstance(entry, tuple) else (entry,)
        if inner and isinstance(name.value, str) and name.tag != "tag:yaml.org,2002:merge":
            line = name.start_mark.line + 1
            if name.value in lines:
                raise InputError(f"{source}: {name.value} stands twice, on lines {lines[name.value]} and {line}")
            lines[name.value] = line
        for part in (name, *inner):
            _check_names(part, source, seen)


def _read(file: Path) -> dict[Any, Any]:
    """The values in a configuration file by name; none in an empty one."""
    try:
        values = read_yaml(read_text(file, _MOST_BYTES), str(file))
    except OSError as error:
        raise InputError(f"{file}: cannot be read as a configuration: {error.strerror}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: not a configuration file: {error}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{file}: not a configuration file: it must hold names of fields with their values")
    return values or {}


def _assign(config: RunConfig, name: str, value: Any, source: str) -> None:
    """Set a field, or the fields of a section that a mapping names; text is YAML where the field is not of text."""
    settings = settings_of(RunConfig)
    if name.startswith(_OPTIONS):
        options, (*outer, last) = config.model.options, name[len(_OPTIONS) :].split(".")
        for part in outer:
            options = options.setdefault(part, {})
            if not isinstance(options, dict):
                raise InputError(f"{source}: {name}: {part} is {_shown(options)}, which has no names within it")
        options[last] = value  # text as it is: what it means depends on the method, which may be named later
    elif name == _OPTIONS[:-1] and (values := _from_text(value, source)) and isinstance(values, dict):
        for inner, part in values.items():
            _assign(config, f"{_OPTIONS}{inner}", part, source)
    elif name in settings:
        hint = settings[name].type
        if typing.get_origin(hint) is list and isinstance(value, str) and not value.lstrip().startswith("["):
            value = [part.strip() for part in value.split(",")]
        if value == "null" and _fits(None, hint):
            value = None
        elif (read := settings[name].read) is not None:
            listed = _from_text(value, source)
            value = listed if isinstance(listed, list) else value  # other text is what it is: YAML reads 0x320 as 800
            value = None if value is None else read(value, f"{source}: {name}")
        elif not _fits(value, hint):
            value = _from_text(value, source)
        _check_type(name, value, f"{source}: ")
        if isinstance(value, int) and _fits(0.5, hint):
            value = float(value) if abs(value) < 1 << 1023 else math.inf
        _set(config, name, value)
    elif name in _sections():
        values = _from_text(value, source)
        if not isinstance(values, dict):
            raise InputError(f"{source}: {name} must be a mapping of names to values, not {_shown(values)}")
        for inner, part in values.items():
            _assign(config, f"{name}.{inner}", part, source)
    else:
        raise _unknown(name, source)


def _set(config: RunConfig, name: str, value: Any) -> None:
    section, _, last = name.rpartition(".")
    setattr(getattr(config, section) if section else config, last, value)


def _from_text(value: Any, source: str) -> Any:
    """What a text says as YAML, or the text itself where it is none; other values as they are."""
    try:
        return read_yaml(value, source) if isinstance(value, str) else value
    except InputError:
        raise
    except ValueError:
        return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are numbers, but true and false are no whole numbers."""
    parts, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return type(value) is list and all(_fits(part, parts[0]) for part in value)
    return type(value) is (origin or hint) or (hint is float and type(value) is int)


def _check_type(name: str, value: Any, where: str = "") -> None:
    hint = settings_of(RunConfig)[name].type
    if not _fits(value, hint):
        raise InputError(f"{where}{name} must be {describe_type(hint)}, not {_shown(value)}")


def describe_type(hint: Any) -> str:
    """What a field accepts, in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else describe_type(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list, each of it {describe_type(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a mapping of names to values"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _shown(value: Any) -> str:
    try:
        return "null" if value is None else reprlib.repr(value)
    except ValueError:  # which Python does not write in decimal digits
        return "a whole number of thousands of digits"


def _sections() -> list[str]:
    return [entry.name for entry in dataclasses.fields(RunConfig) if entry.name not in settings_of(RunConfig)]


def _unknown(name: str, source: str) -> InputError:
    known = [*settings_of(RunConfig), *_sections()]
    section, _, last = name.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    close = difflib.get_close_matches(name, siblings, n=1) or [o for o in known if o.rpartition(".")[2] == last]
    if close:
        return InputError(f"{source}: unknown field {name}: did you mean {close[0]}?")
    names = siblings or [other for other in known if "." not in other]
    return InputError(f"{source}: unknown field {name}: use one of {', '.join(names)}")


def _method(model: ModelConfig) -> Any:
    from m2clip.methods import find_method

    try:
        return find_method(model.method)
    except InputError as error:
        raise InputError(f"model.method: {error}") from None


def _read_options(model: ModelConfig) -> None:
    """Options that are given as text, as YAML where the method's option is not of text."""
    hints = typing.get_type_hints(_method(model).options)
    for name, value in model.options.items():
        read = _from_text(value, "model.options")
        # Text that the option takes stays what it is, but where it says null or is a list.
        if not _fits(value, hints.get(name)) or (hints.get(name) is not str and isinstance(read, list | None)):
            model.options[name] = read
        if isinstance(inner := model.options[name], dict):
            model.options[name] = {key: _from_text(part, "model.options") for key, part in inner.items()}


def _check_method(model: ModelConfig) -> None:
    from m2clip.methods import check_type

    method = _method(model)
    if model.preset is not None and model.preset not in method.presets:
        raise InputError(f"model.preset is {model.preset!r}: use one of {', '.join(method.presets)}")
    hints = typing.get_type_hints(method.options)
    for option, value in model.options.items():
        if option not in hints:
            raise InputError(f"unknown field {_OPTIONS}{option}: use one of {', '.join(hints)}")
        check_type(f"{_OPTIONS}{option}", value, hints[option])


def _find(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if is_file(file):
        return file
    bundled = bundled_configs()
    name = os.fspath(path)
    if name in bundled:
        return Path(str(resources.files("m2clip") / "configs" / f"{name}.yaml"))
    if file.is_dir() and (file / "config.yaml").is_file():
        return file / "config.yaml"
    raise InputError(f"configuration {name!r} is neither a file nor a bundled recipe ({', '.join(bundled)})")
