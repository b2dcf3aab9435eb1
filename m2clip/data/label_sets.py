"""Class names: the published label lists by short name, and the user's own files."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from pathlib import Path

from m2clip.errors import InputError

# Short name -> number of classes. The files lie in labels/, `-` written as `_`.
LABEL_SETS: dict[str, int] = {
    "k400": 400,
    "k400-base": 200,
    "k400-novel": 200,
    "k600": 600,
    "k600-zs1": 160,
    "k600-zs2": 160,
    "k600-zs3": 160,
    "ssv2": 174,
    "ssv2-base": 87,
    "ssv2-novel": 87,
    "ucf101": 101,
    "ucf101-base": 51,
    "ucf101-novel": 50,
    "hmdb51": 51,
    "hmdb51-base": 26,
    "hmdb51-novel": 25,
}

_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CSV_ROW = re.compile(r"\d+\s*,.+")
_NUMBERED_ROW = re.compile(r"(\d+)[ \t]+(\S.*)")


def load_class_names(name_or_path: str | Path) -> list[str]:
    """Class names in the order of their labels, from a built-in list or from a file.

    Args:
        name_or_path: a key of `LABEL_SETS` ("k400", "ucf101-base", ...) or the path of a class file: csv with
            `id,name` rows (ids from 0, header optional), one name a line, SSv2's labels json ({template: "id"}),
            or UCF101's classInd.txt (`id name`, ids from 1).

    Raises:
        InputError: unknown name, unreadable file, ids that are not consecutive, an empty or repeated name.
    """
    key = str(name_or_path).lower()
    if key in LABEL_SETS:
        names = parse_class_file(Path(__file__).parent / "labels" / f"{key.replace('-', '_')}.csv")
        if len(names) != LABEL_SETS[key]:
            raise InputError(
                f"{key}: the packaged list has {len(names)} names, not {LABEL_SETS[key]}; reinstall m2clip"
            )
        return names
    path = Path(name_or_path)
    if not path.is_file():
        close = difflib.get_close_matches(key, LABEL_SETS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"built-in lists: {', '.join(LABEL_SETS)}"
        raise InputError(f"{name_or_path}: neither a built-in label list nor a file; {hint}")
    return parse_class_file(path)


def parse_class_file(path: Path) -> list[str]:
    """Class names of one file; formats and errors as in `load_class_names`."""
    if path.suffix.lower() == ".json":
        first, rows = 0, _json_rows(path)
    else:
        first, rows = _text_rows(path)
    if not rows:
        raise InputError(f"{path}: holds no class names")
    by_id: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, name, line in rows:
        where = f"{path}, line {line}"
        if not name:
            raise InputError(f"{where}: the class name is empty")
        if number in by_id:
            raise InputError(f"{where}: id {number} is already taken by {by_id[number]!r}")
        if name in seen:
            raise InputError(f"{where}: class {name!r} is already on line {seen[name]}")
        by_id[number] = name
        seen[name] = line
    missing = next((i for i in range(first, first + len(by_id)) if i not in by_id), None)
    if missing is not None:
        raise InputError(f"{path}: class id {missing} is missing; ids must run from {first} without a gap")
    return [by_id[i] for i in sorted(by_id)]


def prompt_name(name: str) -> str:
    """A class name as words for a prompt.

    Underscores become spaces, brackets around placeholders are dropped, and a name without spaces is split where its
    capitals begin new words ("ApplyEyeMakeup" -> "Apply Eye Makeup"). Case is kept: CLIP's tokenizer lowers it anyway.
    """
    words = name.replace("_", " ").replace("[", "").replace("]", "").strip()
    if not re.search(r"\s", words):
        words = _CAMEL_BOUNDARY.sub(" ", words)
    return " ".join(words.split())


def match_key(name: str) -> str:
    """A class name without case, spaces, underscores, brackets and quotes, to match names across sources."""
    return re.sub(r"[\s_\[\]'\"]+", "", name).lower()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; InputError with the line number where it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not valid UTF-8; save the file as UTF-8") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped text) of every line that is not blank."""
    stripped = ((number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), start=1))
    return [(number, line) for number, line in stripped if line]


def read_json(path: Path) -> object:
    """The content of a JSON file; InputError with the line number where it is not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of brackets within each other.
        raise InputError(f"{path}: not valid JSON ({error})") from None


def whole_number(text: str, where: str) -> int:
    """A number written in digits, with or without a sign.

    Raises:
        InputError: it has more than nine digits, which is none of what is counted here.
    """
    if len(text.lstrip("+-")) > 9 or not text.lstrip("+-").isdecimal():
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise InputError(f"{where}: {shown!r} is no whole number of up to nine digits")
    return int(text)


def csv_fields(text: str, where: str) -> list[str]:
    """The columns of one line of a csv file."""
    try:
        return next(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise InputError(f"{where}: not a line of a csv file ({error})") from None


def _json_rows(path: Path) -> list[tuple[int, str, int]]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError(f'{path}: expected {{"class name": "id", ...}}, found a {type(table).__name__}')
    rows = []
    for entry, (name, number) in enumerate(table.items(), start=1):
        if not str(number).isdecimal():
            raise InputError(f"{path}, entry {entry}: id {number!r} of class {name!r} is not a number")
        rows.append((whole_number(str(number), f"{path}, entry {entry}"), name.strip(), entry))
    return rows


def _text_rows(path: Path) -> tuple[int, list[tuple[int, str, int]]]:
    """First id, and (id, name, line number) of every row."""
    lines = read_lines(path)
    if not lines:
        return 0, []
    if re.fullmatch(r"id\s*,\s*name", lines[0][1].lower()):
        return 0, [_csv_row(path, number, line) for number, line in lines[1:]]
    if all(_CSV_ROW.fullmatch(line) for _, line in lines):
        return 0, [_csv_row(path, number, line) for number, line in lines]
    numbered = [(_NUMBERED_ROW.fullmatch(line), number) for number, line in lines]
    if all(match for match, _ in numbered):
        rows = [
            (whole_number(match[1], f"{path}, line {number}"), match[2], number) for match, number in numbered if match
        ]
        return (0 if any(label == 0 for label, _, _ in rows) else 1), rows
    return 0, [(rank, line, number) for rank, (number, line) in enumerate(lines)]


def _csv_row(path: Path, line: int, text: str) -> tuple[int, str, int]:
    fields = csv_fields(text, f"{path}, line {line}")
    # An unquoted comma in a name is common in hand-written files and cannot mean anything else in two columns.
    number, name = fields[0].strip(), ",".join(fields[1:]).strip()
    if not number.isdecimal() or len(fields) < 2:
        raise InputError(f"{path}, line {line}: expected `id,name`, found {text!r}")
    return whole_number(number, f"{path}, line {line}"), name, line
