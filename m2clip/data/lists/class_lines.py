"""Class names in lines of text: tables with or without a header, numbered lines, and names alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m2clip.data.lists.class_names import match_key
from m2clip.data.lists.on_disk import has_video_suffix
from m2clip.data.lists.text_files import csv_fields, is_whole, shown, whole_number
from m2clip.errors import InputError

HOW = "begin the file with the line `id,name`, or with `name` where it holds names alone"

_IDS = frozenset(("id", "ids", "idx", "index", "num", "number", "no", "nr", "classid", "labelid"))
_NAMES = frozenset(
    ("name", "names", "classname", "labelname", "text", "title", "description", "template", "action", "category")
)
_EITHER = frozenset(("label", "labels", "class", "classes", "target"))
_QUALIFIERS = frozenset(("class", "label", "action", "activity", "category", "display", "target"))
_TABLES = "\t;,:|="
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BULLET = re.compile(r"([-*+•])\s+(?=\S)")
# "3 name", "3. name", "[3] name", "3 - name", and with letters before the number, as Charades writes: "c003 name".
_NUMBER_FIRST = re.compile(r"[\[(]?([A-Za-z]{0,3})(\d+)[\])]?(?:\s*(?:\.(?!\d)|[=-]?>|→|[:)=|–—-])\s*|\s+)(\S.*)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One class: its number (None: its place in the file), its name and where it stands."""

    number: int | None
    name: str
    where: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold the number (None: none does) and the name, of how many."""

    number: int | None
    name: int
    count: int

    def entry(self, row: Sequence[str], where: str, line: str) -> Entry:
        """The class of a row; InputError where the row is another than the header says."""
        number = row[self.number] if self.number is not None and self.number < len(row) else None
        if len(row) != self.count or (self.number is not None and not is_whole(number or "")):
            expected = "`name,id`" if self.number and self.number > self.name else "`id,name`"
            raise InputError(f"{where}: expected {expected} as the first line says, found {shown(line)}")
        return Entry(
            None if number is None else whole_number(number, where), " ".join(row[self.name].split("\n")), where
        )


def header_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns | None:
    """What a header says, None where it is none; of columns that may be either, the one of digits is the number."""
    roles = [_role(word) for word in header]
    if header[0] in ("", "Unnamed: 0"):
        roles[0] = "id"  # the index of a table that pandas wrote
    known = [role for role in roles if role]
    if not known or any(map(is_whole, header)) or (len(known) < 2 < len(header)):
        return None
    ids, names = ([i for i, role in enumerate(roles) if role == wanted] for wanted in ("id", "name"))
    others = [i for i, role in enumerate(roles) if role == "either" or (role is None and len(header) == 2)]
    digits = [i for i in others if rows and all(i < len(row) and is_whole(row[i]) for row in rows)]
    if not ids:
        ids = digits
    if not names:
        names = [i for i in others if i not in ids]
        # A column of another name beside that of the number, in any language.
        if None in (roles[i] for i in names) and not all(
            i < len(row) and is_whole(row[i]) for row in rows for i in ids[:1]
        ):
            return None
    if ids and "key" in header:
        names = [header.index("key")]  # as EPIC-Kitchens writes, beside a category that classes share
    elif len(names) > 1:
        names = [i for i in names if header[i].lower().endswith("name")][:1]
    if not names or (not ids and None in roles):
        return None
    return Columns(ids[0] if ids else None, names[0], len(header))


def _role(word: str) -> str | None:
    """ "id", "name", "either" or None for the name of a column."""
    plain = re.sub(r"[\s-]+", "_", _WORD_START.sub("_", word.strip(" \"'")).lower())
    of, _, last = plain.rpartition("_")
    if of not in _QUALIFIERS:
        last = plain
    return "id" if last in _IDS else "name" if last in _NAMES else "either" if last in _EITHER else None


def entries_of_lines(lines: Sequence[tuple[int, str]], path: Path) -> list[Entry]:
    """The classes of a text file's lines, without blank lines and comments.

    Raises:
        InputError: a line is not what the header says, or the lines can be read in two ways.
    """
    first = lines[0][1]
    for separator in (*(one for one in "\t;,|" if one in first), None):
        header = [word.strip(" \"'") for word in first.split(separator)]
        known = [word for word in header if _role(word) or not word]
        if len(header) > 1 and len(known) > (separator is None):
            rows = [_cells(line, separator, f"{path}, line {number}") for number, line in lines[1:]]
            columns = header_columns(header, rows)
            if columns is not None:
                return _table(lines[1:], rows, columns, separator, path)
    lines = [(number, _without_comment(line)) for number, line in lines]
    if _role(lines[0][1]):
        return _names(lines[1:], path)
    bullets = [_BULLET.match(line) for _, line in lines]
    if all(bullets) and len({bullet[1] for bullet in bullets if bullet}) == 1:
        return _names([(number, line[1:]) for number, line in lines], path)
    return _without_header(lines, path)


def _cells(line: str, separator: str | None, where: str) -> list[str]:
    return line.split() if separator is None else csv_fields(line, where, separator)


def _table(
    lines: Sequence[tuple[int, str]],
    rows: Sequence[list[str]],
    columns: Columns,
    separator: str | None,
    path: Path,
) -> list[Entry]:
    two = columns.count == 2 and columns.number is not None
    if two and len(rows) > 1 and separator is not None and all(len(row) == len(rows[0]) > 2 for row in rows):
        raise InputError(f"{path}, line {lines[0][0]}: {len(rows[0])} columns where the first line names 2")
    found = []
    for row, (number, line) in zip(rows, lines, strict=True):
        if two and len(row) > 2:
            # An unquoted comma in a name is common in hand-written files and cannot mean anything else in two columns.
            glue = f"{separator} ".lstrip("\t") if separator else " "
            row = [row[0], glue.join(row[1:])] if columns.number == 0 else [glue.join(row[:-1]), row[-1]]
        found.append(columns.entry(row, f"{path}, line {number}", line))
    return found


# ---- without a header ----


def _numbered(line: str, separator: str, number_first: bool) -> tuple[str, str] | None:
    """(number, name) of a line, with the number before the first separator or behind the last; None without any."""
    if separator == " " and number_first:
        match = _NUMBER_FIRST.fullmatch(line.replace("\n", " "))
        return (match[2], _unquoted(match[3])) if match else None
    if separator == "=" and "=>" in line:
        return None
    blank_or = None if separator == " " else separator
    parts = line.split(blank_or, 1) if number_first else line.rsplit(blank_or, 1)
    if len(parts) < 2:
        return None
    number, name = (_unquoted(part) for part in (parts if number_first else reversed(parts)))
    return (number, name) if number.isdecimal() and name else None


def _without_header(lines: Sequence[tuple[int, str]], path: Path) -> list[Entry]:
    """Numbers and names, or names alone; what could be both is refused."""
    if all(line[-1] in ",;" for _, line in lines):
        lines = [(number, line.rstrip(" ,;\t")) for number, line in lines]
    readings = [
        (separator, number_first, [_numbered(line, separator, number_first) for _, line in lines])
        for separator in f"{_TABLES} "
        for number_first in (True, False)
    ]
    whole = [(*reading, [part for part in reading[2] if part]) for reading in readings if all(reading[2])]
    for separator, number_first, _, parts in whole:
        numbers = [whole_number(part[0], f"{path}, line {line}") for part, (line, _) in zip(parts, lines, strict=True)]
        counted = sorted(numbers) in (list(range(len(lines))), list(range(1, len(lines) + 1)))
        distinct = len({match_key(name) for _, name in parts}) == len(parts)
        if separator == " ":
            if not (number_first or distinct):
                continue  # names such as "step 1", "step 2"
            sure = number_first and counted and distinct
        else:
            # A wrong number in a table is told as such.
            both = any(other[0] == separator and other[1] != number_first for other in whole)
            sure = not both and (counted or (number_first and separator in "\t;,"))
            columns = {name.count(separator) for _, name in parts}
            sure = sure and not (len(lines) > 1 and separator in "\t;," and len(columns) == 1 and columns != {0})
        if not sure:
            raise _unclear(path, lines[0], parts[0])
        return [
            Entry(number, name, f"{path}, line {line}")
            for number, (_, name), (line, _) in zip(numbers, parts, lines, strict=True)
        ]
    for _, _, found in readings:
        _check_partly_numbered(found, lines, path)
    _check_names_alone(lines, path)
    return _names(lines, path)


def _check_partly_numbered(
    found: Sequence[tuple[str, str] | None], lines: Sequence[tuple[int, str]], path: Path
) -> None:
    """Refuse lines of which half or more begin, or end, with the number of a class."""
    places = [place for place, part in enumerate(found) if part]
    parts = [part for part in found if part]
    numbers = [int(number[:9]) for number, _ in parts]
    in_order = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    fitting = [place for place, number in zip(places, numbers, strict=True) if in_order or number - place in (0, 1)]
    distinct = len({match_key(name) for _, name in parts}) == len(parts)
    if fitting and 2 * len(fitting) >= len(lines) and distinct:
        raise _unclear(path, lines[fitting[0]], found[fitting[0]])


def _unclear(path: Path, line: tuple[int, str], parts: tuple[str, str] | None) -> InputError:
    number, name = parts or ("", "")
    if has_video_suffix(name):
        return a_video(name, f"{path}, line {line[0]}")
    return InputError(
        f"{path}, line {line[0]}: cannot tell whether it is the class {shown(name)} with the number {number[:9]} or "
        f"the class {shown(line[1])}; {HOW}"
    )


def _check_names_alone(lines: Sequence[tuple[int, str]], path: Path) -> None:
    """Refuse what is a table rather than one name per line."""
    if all(line.isdecimal() for _, line in lines):
        raise InputError(f"{path}: holds numbers and no names; {HOW}")
    bare = [(number, line.rstrip(",;")) for number, line in lines if _unquoted(line) == line]
    for separator in "\t;,|":
        columns = {line.count(separator) + 1 for _, line in bare}
        if len(columns) == 1 and columns != {1} and (separator != "," or len(bare) == len(lines)):
            number, line = bare[0]
            raise InputError(
                f"{path}, line {number}: cannot tell whether {shown(line)} is one class or {columns.pop()}; write one "
                f"class per line, in quotation marks where a name holds commas, or {HOW}"
            )


def _names(lines: Sequence[tuple[int, str]], path: Path) -> list[Entry]:
    return [Entry(None, _unquoted(line.rstrip(" ,;")), f"{path}, line {number}") for number, line in lines]


def _without_comment(line: str) -> str:
    """A line without what follows a # that stands alone, outside of quotation marks."""
    return line if '"' in line else re.split(r"\s#(?:\s|$)", line, maxsplit=1)[0].rstrip()


def a_video(name: str, where: str) -> InputError:
    """What to tell of a video in place of a class name."""
    return InputError(f"{where}: {shown(name)} is a video; expected class names, not a list of videos")


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].replace('""', '"').strip()
    return " ".join(text.split("\n"))
