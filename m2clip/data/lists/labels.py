"""The labels of a list: numbers that count as the class file does, or names of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from m2clip.data.lists.class_names import composed, match_key, natural_key
from m2clip.data.lists.formats import ClassLookup
from m2clip.data.lists.lines import Columns
from m2clip.data.lists.on_disk import has_video_suffix
from m2clip.data.lists.rows import Source
from m2clip.data.lists.text_files import is_whole, shown, whole_number
from m2clip.errors import InputError

_NO_NAME = re.compile(r"\W*[\d.,]+(?:e[+-]?\d+)?|nan", re.IGNORECASE)
_COUNTED = re.compile(r"(\d+)[ \t]+(\S.*)")


def read_labels(lines: Sequence[Columns], source: Source) -> tuple[list[int], list[str] | None]:
    """The label of each line as a number, and the class names; lines whose label holds separators lose their `extra`.

    Raises:
        InputError: no label, labels that are no classes, or that can be read in two ways.
    """
    texts = [line.label or "" for line in lines]
    empty = {text for text in set(texts) if not match_key(text)}
    for line, text in zip(lines, texts, strict=True):
        if text in empty:
            raise InputError(
                f"{line.where}: no label for {shown(line.path)}; expected `path label`, in this order, with a number "
                "or a name"
            )
    numbers = list(map(is_whole, texts))
    names = source.class_names
    if all(numbers):
        found = [whole_number(text, line.where) for text, line in zip(texts, lines, strict=True)]
        return _counted_from_zero(found, lines, source), names
    if names is None:
        _check_names(lines, texts, numbers)
        names = _made_names(lines, texts)
    lookup = ClassLookup(names)
    labels = []
    for line, text, number in zip(lines, texts, numbers, strict=True):
        label = lookup.find(text)
        if label is None and line.rest and (label := lookup.find(line.rest)) is not None:
            line.extra = []
        if label is None:
            line.frames()
            if 2 * sum(numbers) > len(numbers) or number:
                raise _mixed(lines, texts, numbers)
            raise lookup.unknown(text, line.where)
        labels.append(label)
    return labels, names


def _check_names(lines: Sequence[Columns], texts: Sequence[str], numbers: Sequence[bool]) -> None:
    """Refuse labels that make no classes."""
    if any(numbers):
        raise _mixed(lines, texts, numbers)
    no_names = {text for text in set(texts) if _NO_NAME.fullmatch(text)}
    for line, text in zip(lines, texts, strict=True):
        if text in no_names:
            raise InputError(f"{line.where}: label {shown(text)} is no whole number")
        if line.separator == " " and not has_video_suffix(line.path) and line.rest == text:
            raise InputError(f"{line.where}: no label; expected `path label`, found {shown(f'{line.path} {text}')}")
    first = _COUNTED.match(texts[0])
    if first and lines[0].separator == " " and all(map(_COUNTED.match, set(texts))):
        number, name = first.groups()
        raise InputError(
            f"{lines[0].where}: cannot tell whether {shown(texts[0])} is a class, or {number} frames of the class "
            f"{shown(name)}; write a table with a first line such as path,label"
        )


def _mixed(lines: Sequence[Columns], texts: Sequence[str], numbers: Sequence[bool]) -> InputError:
    """Labels of both kinds: the first of the rarer kind is the wrong one."""
    most = 2 * sum(numbers) >= len(numbers)
    odd, usual = numbers.index(not most), numbers.index(most)
    kind = "a whole number" if most else "a class name"
    place = lines[usual].where.rpartition(", ")[2]
    return InputError(
        f"{lines[odd].where}: no label; expected {kind} as on {place}, found {shown(texts[odd])} (a first line that "
        "names the columns is path,label)"
    )


def _made_names(lines: Sequence[Columns], texts: Sequence[str]) -> list[str]:
    names: dict[str, tuple[str, str]] = {}
    first: dict[str, Columns] = {}
    for line, text in zip(lines, texts, strict=True):
        first.setdefault(text, line)
    for text, line in first.items():
        text = composed(" ".join(text.split("\n")))
        name, where = names.setdefault(match_key(text), (text, line.where))
        if name != text:
            raise InputError(
                f"{line.where}: class {shown(text)} is {shown(name)} on {where.rpartition(', ')[2]}; write it the same "
                "everywhere"
            )
    return sorted((name for name, _ in names.values()), key=natural_key)


def _counted_from_zero(labels: list[int], lines: Sequence[Columns], source: Source) -> list[int]:
    """Labels that count as the class file does, which may start at 1.

    Raises:
        InputError: they may be numbers or names of classes, or may count from 0 or from 1.
    """
    names = source.class_names or []
    known = {name: place for place, name in enumerate(names)}
    if names and all(map(str.isdecimal, names)) and any(known.get(str(label), label) != label for label in labels):
        place = next(place for place, label in enumerate(labels) if known.get(str(label), label) != label)
        label = labels[place]
        raise InputError(
            f"{lines[place].where}: cannot tell whether label {label} is the class number {label} or the class named "
            f"{str(label)!r}, which has the number {known[str(label)]}; give the classes names of letters"
        )
    if source.first_number == 0 or not labels or min(labels) < 1:
        return labels
    if max(labels) == len(names):
        return [label - 1 for label in labels]
    if max(labels) < len(names):
        raise InputError(
            f"{source.path}: its labels, {min(labels)} to {max(labels)}, may count from 0, or from 1 as the class file "
            "does; number the classes from 0 if the list does, or write class names in place of the labels"
        )
    return labels
