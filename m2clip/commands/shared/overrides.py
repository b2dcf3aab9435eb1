"""Fields of the configuration as arguments of a command: --section.field VALUE, and what --help says of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from m2clip.config_fields import Setting

_PLACE_HOLDERS = {int: "NUMBER", float: "NUMBER", bool: "{true,false}", str: "TEXT", dict: "MAPPING", list: "NAMES"}


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command take any field of the configuration (`args.overrides`), and list them in its help."""
    parser.set_defaults(takes_overrides=True)


def take_word(rest: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first word that is neither an option nor the value of one, and the others; None where there is none."""
    waiting = False
    for place, word in enumerate(rest):
        if not waiting and not word.startswith("--"):
            return word, [*rest[:place], *rest[place + 1 :]]
        waiting = not waiting and "=" not in word
    return None, list(rest)


def join_overrides(rest: Sequence[str]) -> list[str]:
    """ "--a.b 1 --c=2" as ["a.b=1", "c=2"].

    Raises:
        InputError: a value without a name or a name without a value.
    """
    from m2clip.errors import InputError

    joined: list[str] = []
    waiting: str | None = None
    for word in rest:
        if waiting is not None:
            joined.append(f"{waiting}={word}")
            waiting = None
        elif not word.startswith("--"):
            raise InputError(f"{word!r} belongs to no option: write --section.field value, such as --optim.lr 5e-4")
        elif "=" in word:
            joined.append(word[2:])
        else:
            waiting = word[2:]
    if waiting is not None:
        raise InputError(f"--{waiting} has no value: write --section.field value, such as --optim.lr 5e-4")
    return joined


def fields_help(taken: Collection[str] = ()) -> str:
    """The fields of the configuration, section by section, and the recipes.

    Args:
        taken: options that the command has itself, such as "--output".
    """
    from m2clip.config import bundled_configs
    from m2clip.config_fields import RunConfig, settings_of

    wide = partial(argparse.HelpFormatter, max_help_position=34)
    listed = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=wide)
    listed.add_argument_group(
        "fields of the configuration",
        "Files of --config hold them in sections. An option such as --optim.lr 5e-4 replaces a value of the file. "
        "A run resumes only with the same values of the fields marked with *.",
    )
    groups: dict[str, Any] = {}
    for name, setting in sorted(settings_of(RunConfig).items(), key=lambda item: "." in item[0]):
        if f"--{name}" in taken:
            continue
        section = name.rpartition(".")[0]
        if section not in groups:
            kind = type(getattr(RunConfig(), section)) if section else RunConfig
            groups[section] = listed.add_argument_group(section or "run", kind.__doc__)
        groups[section].add_argument(f"--{name}", **_described(setting))
    listed.add_argument_group("recipes for --config", ", ".join(bundled_configs()))
    return listed.format_help()


def _described(setting: Setting) -> dict[str, Any]:
    """Place-holder of the value and help line of a field."""
    hint = setting.type
    optional = type(None) in get_args(hint)
    kind = next(part for part in get_args(hint) if part is not type(None)) if optional else get_origin(hint) or hint
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    facts = [f"default: {default}"]
    if kind in (int, float) and setting.read is None:
        bounds = {"{} or more": setting.at_least, "above {}": setting.above}
        bounds |= {"{} or less": setting.at_most, "below {}": setting.below}
        within = [words.format(bound) for words, bound in bounds.items() if bound is not None]
        facts.insert(0, ", ".join(["whole number" if kind is int else "number", *within]))
    mark = " *" if "training" in setting.decides else ""
    line = f"{setting.meaning} ({'; '.join(facts)}){mark}"
    if kind is Literal:
        return {"help": line, "choices": get_args(hint)}
    return {"help": line, "metavar": setting.unit.upper() or _PLACE_HOLDERS[kind]}
