"""Reading the text files that people write: encodings, ends of lines, csv and JSON, and what is no text at all."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from os import fstat
from pathlib import Path

from m2clip.data.video.mp4_header import FIRST_BOXES
from m2clip.errors import InputError
from m2clip.files.disk import MOST_BYTES, open_regular

_HEAD = 512
_TAR_MARK = slice(257, 262)
# What files begin with that are given in place of a text file by mistake.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (b"....(" + b"|".join(FIRST_BOXES) + b")", "a video (MP4 or MOV)"),
        (rb"RIFF....AVI ", "a video (AVI)"),
        (rb"RIFF....WEBP", "a picture (WebP)"),
        (rb"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)"),
        (rb"\x30\x26\xb2\x75", "a video (WMV)"),
        (rb"FLV\x01", "a video (FLV)"),
        (rb"OggS", "a video or sound (Ogg)"),
        (rb"\x00\x00\x01[\xba\xb3]|(\x47.{187}){2}\x47|(.{4}\x47.{187}){2}.{4}\x47", "a video (MPEG)"),
        (rb"\x89PNG", "a picture (PNG)"),
        (rb"\xff\xd8\xff", "a picture (JPEG)"),
        (rb"GIF8[79]a", "a picture or video (GIF)"),
        (rb"PK[\x03\x05]", "a zip archive (wheels, .npz, .pt and .xlsx files are such, too)"),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "a compressed file"),
        (rb"%PDF", "a PDF document"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"PAR1", "a Parquet table"),
        (rb"SQLite format 3", "a database"),
        (rb"\x7fELF|MZ[^\t\n\r -~]", "a program"),
        (rb"\x80[\x02-\x05]", "a pickle (.pt, .pth and .pkl files are such)"),
        (rb".{2}\0{6}\{", "a safetensors file"),
        (rb"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file itself)"),
        (rb"(\xef\xbb\xbf)?\s*<(!DOCTYPE |!doctype )?(html|HTML)", "a web page (HTML)"),
    )
)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; lines may end as on any system.

    Raises:
        InputError: it cannot be read, is no regular file, is a video or another kind of file that is no text, or is
            text in another encoding.
    """
    try:
        with open_regular(path) as file:
            size = fstat(file.fileno()).st_size
            data = file.read(_HEAD)
            _check_text(path, data)
            if size > MOST_BYTES:
                raise InputError(f"{path}: a file of {size} bytes is no list or table; at most {MOST_BYTES} are read")
            data += file.read(MOST_BYTES)
    except ValueError as error:
        # A path with a NUL character.
        raise error if isinstance(error, InputError) else InputError(f"{str(path)!r}: no name of a file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if re.search(rb"[\0-\x08]", data[:_HEAD]):
            raise InputError(
                f"{path}: not valid UTF-8 and not a text file, as a list of videos or of names is"
            ) from None
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise InputError(f"{path}, line {line}: not valid UTF-8; save the file as UTF-8") from None


def _check_text(path: Path, head: bytes) -> None:
    """Refuse what is no text, by what it is."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or re.match(rb"([^\0]\0){4}|(\0[^\0]){4}", head):
        raise InputError(f"{path}: text in UTF-16 or UTF-32; save the file as UTF-8")
    kind = next((kind for pattern, kind in _SIGNATURES if pattern.match(head)), None)
    if kind is None and head[_TAR_MARK] == b"ustar":
        kind = "a tar archive"
    if kind is not None:
        advice = " (m2clip predict takes videos themselves)" if "video" in kind else ""
        raise InputError(f"{path}: {kind}, not a text file such as a list of videos or of class names{advice}")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of every line that is not blank, nor empty cells of a table."""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if _says_something(line := line.strip(), number):
            yield number, line


def _says_something(line: str, number: int) -> bool:
    """Whether a line is more than the separators of empty cells, and not `sep=;`, with which Excel begins a table."""
    return bool(line.strip(" ,;\t")) and not (number == 1 and re.fullmatch(r"sep=[,;\t|]?", line))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped text) of every line that is not blank."""
    return list(numbered_lines(read_text(path)))


_OPENING = re.compile(r'(?:^|[,;\t]) *"')


def read_records(path: Path) -> list[tuple[int, str]]:
    """As `read_lines`; a line break within quotation marks does not end a line, except behind a # at its beginning.

    Raises:
        InputError: a quotation mark at the beginning of a field is never closed.
    """
    return list(numbered_records(read_text(path), path))


def numbered_records(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """As `read_records`, of the text of a file."""
    if '"' not in text:
        yield from numbered_lines(text)
        return
    start = 0
    parts: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if not parts:
            start, line = number, line.lstrip()
        comment = not parts and line.startswith("#")
        inside = not comment and _leaves_open(line, bool(parts))
        if inside or parts:
            parts.append(line)
        if inside:
            continue
        if _says_something(record := ("\n".join(parts) if parts else line).strip(), start):
            yield start, record
        parts = []
    if parts:
        raise InputError(f"{path}, line {start}: a quotation mark is not closed: {shown(parts[0])}")


def _leaves_open(line: str, inside: bool) -> bool:
    """Whether a quoted field goes on after the line; `inside`: one came from the line before."""
    at = 0
    while True:
        if not inside:
            opening = _OPENING.search(line, at)
            if opening is None:
                return False
            at = opening.end()
        at = closing_quote(line, at) + 1
        if not at:
            return True
        inside = False


def closing_quote(text: str, start: int) -> int:
    """Where the quoted field ends whose content begins at `start`, -1 if nowhere; a doubled mark does not end it."""
    at = text.find('"', start)
    while at >= 0 and text[at + 1 : at + 2] == '"':
        at = text.find('"', at + 2)
    return at


def csv_fields(text: str, where: str, separator: str = ",") -> list[str]:
    """The columns of one line of a csv file, without blanks around them."""
    try:
        row = next(
            csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True), []
        )
    except csv.Error as error:
        raise InputError(f"{where}: not a line of a csv file ({error})") from None
    return [field.strip() for field in row]


def read_json(path: Path) -> object:
    """The content of a JSON file; InputError with the line number where it is not JSON."""
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path, line: int | None = None) -> object:
    """The value of a JSON text.

    Args:
        text: the JSON.
        path: the file that it is of, for messages.
        line: where it begins, if it is not the whole file.

    Raises:
        InputError: it is no JSON, or gives one key of an object twice.
    """
    where = str(path) if line is None else f"{path}, line {line}"
    try:
        return _JSON.decode(text)
    except _TwiceError as error:
        raise InputError(f"{where}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno + (line or 1) - 1}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or thousands of brackets within each other.
        raise InputError(f"{where}: not valid JSON ({error})") from None


def unique_keys(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    """The pairs as a dict; InputError where one key is there twice."""
    try:
        return _unique(pairs)
    except _TwiceError as error:
        raise InputError(f"{where}: {error}") from None


class _TwiceError(ValueError):
    """A key is there twice."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _TwiceError(f"{shown(twice)} is given twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique)  # lists have a value in each of many lines


def whole_number(text: str, where: str) -> int:
    """A number written in digits, with or without a sign.

    Raises:
        InputError: it has more than nine digits, which is none of what is counted here.
    """
    if len(text.lstrip("+-")) > 9 or not is_whole(text):
        raise InputError(f"{where}: {shown(text)} is no whole number of up to nine digits")
    return int(text)


def is_whole(text: str) -> bool:
    """Whether a text is digits, with or without a sign."""
    return (text[1:] if text[:1] in ("+", "-") else text).isdecimal()


def one_line(path: object) -> str:
    """A path for a message, in quotes where it would not be one line otherwise."""
    text = str(path)
    return text if text.isprintable() else shown(text)


def shown(text: str) -> str:
    """A text in quotes for a message: in one line, and not too long."""
    return repr(text if len(text) <= 100 else f"{text[:97]}...")
