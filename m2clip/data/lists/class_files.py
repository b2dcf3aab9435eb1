"""Files of class names, as people write them: tables, lists and maps; text, JSON and YAML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2clip.data.lists.class_lines import HOW, Entry, a_video, entries_of_lines, header_columns
from m2clip.data.lists.class_names import match_key
from m2clip.data.lists.on_disk import has_video_suffix
from m2clip.data.lists.text_files import is_whole, parse_json, read_records, read_text, shown, unique_keys, whole_number
from m2clip.errors import InputError

_WRAPPERS = ("names", "classes", "class_names", "labels", "label_names", "categories", "id2label", "label2id")
_WRAPPED = re.compile(rf"({'|'.join(_WRAPPERS)}):\s*([\[{{].*)?")


def parse_class_file(path: Path) -> list[str]:
    """Class names of one file; formats and errors as in `m2clip.data.lists.label_sets.load_class_names`."""
    return numbered_classes(path)[1]


def numbered_classes(path: Path) -> tuple[int, list[str]]:
    """The number that a class file gives its first class, 0 or 1, and the names in order; errors as for the names."""
    entries = _entries(path)
    if not entries:
        raise InputError(f"{path}: holds no class names")
    by_id: dict[int, str] = {}
    seen: dict[str, Entry] = {}
    for place, entry in enumerate(entries):
        number = place if entry.number is None else entry.number
        if not match_key(entry.name):
            raise InputError(f"{entry.where}: the class name is empty")
        if has_video_suffix(entry.name):
            raise a_video(entry.name, entry.where)
        if number in by_id:
            raise InputError(f"{entry.where}: id {number} is already taken by {by_id[number]!r}")
        other = seen.setdefault(match_key(entry.name), entry)
        if other is not entry:
            line = other.where.removeprefix(f"{path}, ")
            same = "" if other.name == entry.name else f" as {other.name!r}"
            raise InputError(f"{entry.where}: class {entry.name!r} is already on {line}{same}")
        by_id[number] = entry.name
    first = 0 if 0 in by_id or 1 not in by_id else 1
    missing = next((i for i in range(first, first + len(by_id)) if i not in by_id), None)
    if missing is not None:
        raise InputError(f"{path}: class id {missing} is missing; ids must run from 0 or 1 without a gap")
    return first, [by_id[i] for i in sorted(by_id)]


def class_table(names: Sequence[str]) -> str:
    """The text of a class file (csv, `id,name`), which `load_class_names` reads."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("id", "name"), *enumerate(names)])
    return table.getvalue()


def _entries(path: Path) -> list[Entry]:
    text = read_text(path)
    kind = path.suffix.lower()
    if kind == ".json":
        return _from_value(parse_json(text, path), path)
    lines = [(number, line) for number, line in read_records(path) if not line.startswith("#")]
    first = lines[0][1] if lines else ""
    # A name may begin with a bracket as well: "[something] falls".
    closing = {"[": "]", "{": "}"}.get(first[:1], first)
    structured = closing not in first or re.match(r"[\[{]\s*['\"]", first) or (len(lines) == 1 and first[-1] == closing)
    # A key, and below it a list or a map.
    structured = structured or (re.fullmatch(r"\w+:", first) is not None and len(lines) > 1)
    structured = structured or any(map(_WRAPPED.fullmatch, (line for _, line in lines)))
    if len(lines) > 1 and all(line[0] == "{" and line[-1] == "}" for _, line in lines):
        return _from_value([parse_json(line, path, number) for number, line in lines], path)
    if lines and (kind in (".yaml", ".yml") or structured):
        return _from_value(_read_yaml(text, path), path)
    if not lines:
        return []
    return entries_of_lines(lines, path)


# ---- lists and maps ----


def _read_yaml(text: str, path: Path) -> Any:
    """The value of a YAML text with all its scalars as text, so that "no" and "1:30" are names."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

    def value(node: Any) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return list(map(value, node.value))
        if isinstance(node, yaml.MappingNode):
            return unique_keys([(str(value(key)), value(entry)) for key, entry in node.value], str(path))
        return node.value

    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise InputError(f"{path}: aliases (&name, *name) are not read in a file of class names; write the names")
        document = yaml.compose(text, loader)
        return [] if document is None else value(document)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{line}: not valid YAML ({' '.join(str(error).split())[:200]})") from None


def _from_value(value: Any, path: Path) -> list[Entry]:
    if isinstance(value, dict):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), (dict, list))), None)
        if inner is not None:
            return _from_value(inner, path)
        return _from_map([(str(key), entry) for key, entry in value.items()], path)
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list or a map of class names, found a {type(value).__name__}")
    places = [f"{path}, entry {number}" for number in range(1, len(value) + 1)]
    if value and all(isinstance(entry, dict) for entry in value):
        header = [str(key) for key in value[0]]
        rows = [
            [_scalar(entry.get(key), where) for key in value[0]] for entry, where in zip(value, places, strict=True)
        ]
        columns = header_columns(header, rows)
        if columns is None:
            raise InputError(f"{path}: entries need an `id` and a `name`, found {', '.join(header)[:100]}")
        return [columns.entry(row, where, str(row)) for row, where in zip(rows, places, strict=True)]
    if value and all(isinstance(entry, list) for entry in value):
        rows = [[_scalar(word, where) for word in entry] for entry, where in zip(value, places, strict=True)]
        if any(is_whole(word) for row in rows for word in row):
            pairs = [(row[0], row[-1]) for row in rows if len(row) == 2]
            return _from_map(pairs if len(pairs) == len(rows) else [("", "")], path)
        # Diving48 names a class by a list of the dive's parts.
        value = [" ".join(row) for row in rows]
    return [Entry(None, _scalar(entry, where), where) for entry, where in zip(value, places, strict=True)]


def _from_map(pairs: list[tuple[str, Any]], path: Path) -> list[Entry]:
    rows = [(_scalar(key, str(path)), _scalar(entry, f"{path}, entry {n}")) for n, (key, entry) in enumerate(pairs, 1)]
    by_key, by_value = (bool(rows) and all(is_whole(row[side]) for row in rows) for side in (0, 1))
    if by_key and by_value:
        key, entry = rows[0]
        raise InputError(
            f"{path}: cannot tell whether the map's first entry is the class {key!r} with the number {entry} or the "
            f"class {entry!r} with the number {key}; {HOW}"
        )
    entries = []
    for n, (key, entry) in enumerate(rows, 1):
        number, name = (key, entry) if by_key else (entry, key)
        where = f"{path}, entry {n}"
        if not is_whole(number):
            raise InputError(f"{where}: id {number!r} of class {name!r} is not a number")
        entries.append(Entry(whole_number(number, where), name, where))
    return entries


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{where}: expected a class name or a number, found {shown(str(value))}")
    if isinstance(value, int) and abs(value) >= 10**9:
        raise InputError(f"{where}: a number of more than nine digits is no class")
    text = " ".join(str(value).split("\n")).strip()
    # Kinetics' names, as PyTorchVideo keeps them, are in quotation marks once more.
    return text[1:-1] if re.fullmatch(r'"[^"]+"', text) else text
