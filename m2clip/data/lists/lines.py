"""One line of a list of videos: taking it apart, whatever separates its columns, and writing it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from m2clip.data.lists.on_disk import has_video_suffix
from m2clip.data.lists.suffixes import VIDEO_SUFFIXES
from m2clip.data.lists.text_files import closing_quote, csv_fields, is_whole, shown
from m2clip.data.segment import Segment, parse_seconds, seconds_text
from m2clip.errors import InputError

SEPARATORS = "\t;,"
_BLANKS = " \t,;"
_AFTER_VIDEO = re.compile(
    rf"(?:{'|'.join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))})(?=[ \t,;])", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
# Blanks and commas do not matter before the suffix of a video.
_PLAIN_PATH = re.compile(
    rf"[^\s\"#{{\[,;]([^\s\",;]*|[^\n\r\t\"]*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))", re.IGNORECASE
)


@dataclass(slots=True)
class Columns:
    """What a line says.

    Attributes:
        where: file and line.
        path: of the video.
        extra: what stands between path and label.
        label: a number or a class name; None where the line has none.
        rest: all that follows the path, which is the label where that is a name with separators in it.
        separator: a blank, or one of `SEPARATORS`.
        counted: whether a header says that the number of frames is what stands between path and label.
        times: start and end of a part of the video, as they are written; None where all of it is meant.
    """

    where: str
    path: str
    extra: list[str]
    label: str | None
    rest: str = ""
    separator: str = " "
    counted: bool = False
    times: tuple[str, str] | None = None

    def frames(self) -> int | None:
        """The number of frames of `path frames label`, None where the line has no third column.

        Raises:
            InputError: there are other columns.
        """
        if not self.extra:
            return None
        # Behind the name of a video file, a table's third column may be anything; lists of blanks have one meaning.
        counted = self.counted or self.separator == " " or not has_video_suffix(self.path)
        if len(self.extra) == 1 and counted and self.extra[0].isdecimal() and len(self.extra[0]) < 10:
            return int(self.extra[0])
        columns = ", ".join(shown(column) for column in (*self.extra[:5], self.label or ""))
        raise InputError(
            f"{self.where}: columns {columns} after {shown(self.path)}; expected `path label` or `folder frames "
            "label`: name the columns in a first line (path,label, or path,start,end,label with seconds), delete the "
            "others, or put a path with separators in quotation marks"
        )


def split_line(text: str, where: str) -> Columns:
    """The columns of a line without a header: `path label`, `path frames label`, or more, in any separators."""
    found = _split(text, where)
    found.path = _without_quotes(found.path)
    if found.label is not None:
        found.label = None if has_video_suffix(found.label) else _without_quotes(found.label)
    return found


def _without_quotes(text: str) -> str:
    """A text without single quotation marks around it, as Python prints."""
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == "'" else text


def _split(text: str, where: str) -> Columns:
    if text[0] == '"' and (end := closing_quote(text, 1)) > 0 and (end + 1 == len(text) or text[end + 1] in _BLANKS):
        return _behind(text[1:end].replace('""', '"'), text[end + 1 :], where)
    head, last = _last_word(text)
    if head and is_whole(last):
        path = head.rstrip(_BLANKS)
        ends = [] if has_video_suffix(path) else [match.end() for match in _AFTER_VIDEO.finditer(path)]
        words = path[ends[-1] :].strip(_BLANKS) if ends else ""
        # A class name may end with a number: "a.mp4,step 10".
        if words and "/" not in words and not all(_NUMBER.fullmatch(word) for word in re.split(r"[ \t,;]+", words)):
            return _named(text, where)
        return _before(head, last, where)
    head, last = _last_word(text[: max(text.rfind(" #"), 0)].rstrip())
    if is_whole(last) and has_video_suffix(head.rstrip(_BLANKS)):
        return _before(head, last, where)
    return _named(text, where)


def _last_word(text: str) -> tuple[str, str]:
    start = max(map(text.rfind, _BLANKS)) + 1
    return text[:start], text[start:]


def _before(head: str, label: str, where: str) -> Columns:
    """The columns of a line that ends with a number: what stands before it is a path, or a path and more columns."""
    path = head.rstrip(_BLANKS)
    separator, empty = _between(head[len(path) :])
    extra = _trailing_numbers(path)
    shorter = path.rsplit(None, len(extra))[0] if extra else path
    if separator == " " or (extra and has_video_suffix(shorter)):
        return Columns(where, shorter, extra + empty, label, separator=separator)
    pieces = csv_fields(path, where, separator) if '"' in path else [piece.strip() for piece in path.split(separator)]
    if len(pieces) > 1 and (not has_video_suffix(path) or any(map(has_video_suffix, pieces[:-1]))):
        return Columns(where, pieces[0], pieces[1:] + empty, label, separator=separator)
    return Columns(where, path, empty, label, separator=separator)


def _between(blanks: str) -> tuple[str, list[str]]:
    """What separates two columns, and the empty columns between them."""
    separators = [blank for blank in blanks if blank in SEPARATORS]
    return (separators[0], [""] * (len(separators) - 1)) if separators else (" ", [])


def _trailing_numbers(path: str) -> list[str]:
    """The columns of digits at the end of a path in blanks: all behind a video's suffix, or the number of frames."""
    if has_video_suffix(path):
        return []
    words = path.split()
    first = len(words)
    while first > 1 and _NUMBER.fullmatch(words[first - 1]):
        first -= 1
    if first == len(words):
        return []
    return words[first:] if has_video_suffix(words[first - 1]) else words[-1:]


def _behind(path: str, rest: str, where: str) -> Columns:
    """The columns of a line whose path is known."""
    text = rest.lstrip(_BLANKS)
    separator, extra = _between(rest[: len(rest) - len(text)])
    text = (text if '"' in text else text.partition(" # ")[0]).rstrip(_BLANKS)
    if not text:
        return Columns(where, path, [], None)
    if separator != " ":
        fields = csv_fields(text, where, separator)
    elif all(_NUMBER.fullmatch(word) for word in text.split()):
        fields = text.split()
    elif len(words := text.split(None, 2)) == 3 and are_times(words[:2]):
        return Columns(where, path, words[:2], words[2], words[2])
    else:
        fields = csv_fields(text, where, "\t")
    return Columns(where, path, extra + fields[:-1], fields[-1] or None, " ".join(text.split("\n")), separator)


def _named(text: str, where: str) -> Columns:
    """The columns of a line that ends with a class name."""
    ends = [match.end() for match in _AFTER_VIDEO.finditer(text)]
    if ends:
        separator = text[ends[-1] :].lstrip(" ")[0]
        # Blanks and suffixes may be within the name of a folder; in a table the first video is the path.
        end = ends[-1] if separator not in SEPARATORS else ends[0]
        return _behind(text[:end], text[end:], where)
    for separator in SEPARATORS:
        if separator in text:
            path, _, rest = text.partition(separator)
            return _behind(path.strip(), separator + rest, where)
    words = text.split()
    if len(words) == 2:
        return Columns(where, words[0], [], words[1], words[1])
    return Columns(where, text, [], None)


def are_times(columns: list[str]) -> bool:
    """Whether columns without a header are start and end of a part in seconds: whole numbers may be those of frames."""
    known = len(columns) == 2 and all(parse_seconds(column) is not None for column in columns)
    return known and any(not is_whole(column) for column in columns)


def list_text(videos: Iterable[tuple[str, int | None, Segment | None, int]]) -> str:
    """The text of a list that is read again as it was.

    Args:
        videos: path, number of frames or None, part or None, and label. All have parts, or none has.
    """
    lines: list[str] = []
    for path, frames, segment, label in videos:
        quoted = '"' + path.replace('"', '""') + '"'
        if segment is not None:
            lines += [] if lines else ["path,start,end,label"]
            lines.append(",".join([quoted, *map(seconds_text, segment), str(label)]))
        else:
            written = path if _PLAIN_PATH.fullmatch(path) else quoted
            lines.append(f"{written} {label}" if frames is None else f"{written} {frames} {label}")
    return "".join(f"{line}\n" for line in lines)
