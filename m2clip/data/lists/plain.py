"""Lists of videos as people write them: `path label` lines, tables with a header, JSON, and `folder frames label`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from m2clip.data.lists.labels import read_labels
from m2clip.data.lists.lines import SEPARATORS, Columns, are_times, split_line
from m2clip.data.lists.on_disk import Disk, has_video_suffix
from m2clip.data.lists.rows import Parsed, Row, Source
from m2clip.data.lists.segments import read_segment, with_start_and_end
from m2clip.data.lists.text_files import (
    csv_fields,
    is_whole,
    numbered_lines,
    numbered_records,
    parse_json,
    read_text,
    shown,
)
from m2clip.errors import InputError

# Of several such columns the first of this order is the path.
COLUMNS_OF_PATHS = (
    ("path", "video_path", "videopath", "clip_path", "file_path", "filepath", "file", "filename", "file_name")
    + ("video_file", "video_filename", "video", "videos", "clip", "video_name", "clip_name", "vid_name", "video_id")
    + ("vid", "id", "name")
)
_LABELS = frozenset(
    ("label", "labels", "class", "class_name", "classname", "label_name", "class_id", "class_index", "label_id")
    + ("label_index", "category", "action", "action_name", "action_label", "activity", "target", "tag", "template")
)
_FRAMES = frozenset(["num_frames", "n_frames", "nframes", "frames", "total_frames", "frame_count", "frames_count"])
_SPLITS = frozenset(["split", "subset", "partition"])
_STARTS = frozenset(
    ("start", "start_time", "start_sec", "start_secs", "start_second", "start_seconds", "start_s", "start_timestamp")
    + ("time_start", "t_start", "begin", "begin_time")
)
_ENDS = frozenset(
    ("end", "end_time", "end_sec", "end_secs", "end_second", "end_seconds", "end_s", "end_timestamp", "time_end")
    + ("t_end", "stop", "stop_time", "stop_timestamp")
)
_OF_SEGMENTS = frozenset(["duration", "start_frame", "end_frame", "stop_frame"])  # which say nothing beside seconds
_OF_NO_MATTER = frozenset(["", "index", "idx", "unnamed:_0", "fps", "width", "height"])
# Diving48: its videos are cut already, and all of them start at 0.
_DIVING48 = frozenset(["vid_name", "label", "start_frame", "end_frame"])


def parse_list(source: Source) -> Parsed:
    """`path label`, one video per line, with a number or a class name as label.

    Columns are separated by blanks, commas, semicolons or tabs, and may be in quotation marks. A first line may name
    them (`path,label`); lines that begin with # are comments. JSON lines, or a JSON list, of objects with such names
    are read as well. Columns `start` and `end` in seconds, or a field `segment` of both, name a part of a video. Class
    names that are not given are those of the list, in natural order.
    """
    return _parse(source, counted=False)


def parse_parts(source: Source) -> Parsed | None:
    """A table or JSON whose columns are those of `parse_list` with start and end, but no label: all labels are 0.

    None where it is something else.
    """
    text = read_text(source.path)
    objects = _json_objects(text, source.path)
    if objects is not None:
        first = with_start_and_end(objects[0][1], objects[0][0]) if objects else None
        header = list(first) if isinstance(first, dict) else []
    else:
        records = (record for _, record in numbered_records(text, source.path) if not record.startswith("#"))
        header = _header(next(records, ""))[1]
    words = {_plain(column) for column in header}
    if not (words & _STARTS and words & _ENDS) or words & _LABELS:
        return None
    lines = _read(source)
    for line in lines:
        line.label = "0"
    return _rows(lines, source, counted=False)


def parse_frames(source: Source) -> Parsed:
    """`path frames label`: folders of images, or videos whose names lack the suffix; what lies on the disk decides."""
    return _parse(source, counted=True)


def looks_counted(text: str, path: Path) -> bool:
    """Whether the first line of a list is `path frames label` without the suffix of a video."""
    for number, record in numbered_records(text, path):
        if not record.startswith("#"):
            line = split_line(record, f"{path}, line {number}")
            return len(line.extra) == 1 and line.extra[0].isdecimal() and not has_video_suffix(line.path)
    return False


def _parse(source: Source, counted: bool) -> Parsed:
    return _rows(_read(source), source, counted)


def _rows(lines: list[Columns], source: Source, counted: bool) -> Parsed:
    for line in lines:
        if line.times is None and are_times(line.extra):
            line.times, line.extra = (line.extra[0], line.extra[1]), []
    if odd := next((line for line in lines if (line.times is None) != (lines[0].times is None)), None):
        one, other = (lines[0], odd) if odd.times is None else (odd, lines[0])
        raise InputError(f"{other.where}: no start and end of a part, as on {one.where.rpartition(', ')[2]}")
    labels, names = read_labels(lines, source)
    disk = Disk()
    named: dict[str, Path] = {}  # parts name a file often
    rows: list[Row] = []
    unknown: list[int] = []
    films = folders = 0  # that are there
    for line, label in zip(lines, labels, strict=True):
        if not counted and line.times is None:
            _join_number(line, disk, source)
        frames = line.frames()
        if counted and frames is None:
            raise InputError(f"{line.where}: no label; expected `folder num_frames label` for {shown(line.path)}")
        if not line.path:
            raise InputError(f"{line.where}: no name of a video")
        if (known := named.get(line.path)) is None:
            known = named[line.path] = disk.meant(source.root / line.path, line.where)
        path = known
        if frames is not None and not disk.is_folder(path):
            if disk.is_there(path) or not counted:
                frames, films = None if frames else 0, films + 1
            else:
                _check_missing(line, disk, source)
                unknown.append(len(rows))
        else:
            folders += frames is not None
        segment = None if line.times is None else read_segment(*line.times, line.where)
        if segment is not None and disk.is_folder(path):
            raise InputError(f"{line.where}: {shown(line.path)} is a folder: parts in seconds are of video files alone")
        rows.append(Row(line.where, path, label, frames, segment=segment))
    if films and not folders:
        # What is missing is missing as a video.
        for place in unknown:
            rows[place] = Row(rows[place].where, rows[place].path, rows[place].label)
    return Parsed(rows, names)


def _join_number(line: Columns, disk: Disk, source: Source) -> None:
    """Take a number behind a name without suffix as part of the name, if that is what the disk or the format says."""
    if line.counted or line.separator != " " or has_video_suffix(line.path):
        return
    if len(line.extra) == 1 and line.extra[0].isdecimal():
        longer = f"{line.path} {line.extra[0]}"
        shorter = disk.meant(source.root / line.path, line.where)
        if not disk.is_there(shorter) or disk.is_there(disk.meant(source.root / longer, line.where)):
            line.path, line.extra = longer, []


def _check_missing(line: Columns, disk: Disk, source: Source) -> None:
    """Refuse `path start end label`, where the path with the first number behind it is no folder but without it is."""
    path, _, number = line.path.rpartition(" ")
    if line.separator == " " and is_whole(number) and path.strip():
        shorter = disk.meant(source.root / path.strip(), line.where)
        if disk.is_there(shorter):
            line.path, line.extra = path.strip(), [number, *line.extra]
            line.frames()


# ---- lines ----


def _read(source: Source) -> list[Columns]:
    """The lines of a list, those of one split where a column names splits."""
    text = read_text(source.path)
    objects = _json_objects(text, source.path)
    if objects is not None:
        return _from_objects(objects, source)
    records = [
        (f"{source.path}, line {number}", record)
        for number, record in numbered_records(text, source.path)
        if not record.startswith("#") or _is_named_so(record, source)
    ]
    if not records:
        return []
    separator, first = _header(records[0][1])
    if not first:
        _refuse_split(source)
        lines = [split_line(record, where) for where, record in records]
        _check_first(lines, source)
        return lines
    if separator == " ":
        _refuse_split(source)
        roles = _roles(first, records[0][0])
        if roles["path"] != 0 or roles.get("label") != len(first) - 1 or "start" in roles:
            raise InputError(
                f"{records[0][0]}: columns in blanks are `path label` or `path frames label`, in this order; others "
                "need commas, semicolons or tabs between them"
            )
        lines = [split_line(record, where) for where, record in records[1:]]
        for line in lines:
            line.counted = "frames" in roles
        return lines
    # A comma in a class name that is not in quotation marks is found out by the names, if they are known.
    most = len(first) if source.class_names and _plain(first[-1]) in _LABELS else 0
    rows = ((where, _cells(record, where, separator, most)) for where, record in records[1:])
    return _from_table(first, rows, source, records[0][0])


def _check_first(lines: Sequence[Columns], source: Source) -> None:
    """Refuse a first line that names columns, but not such as are known."""
    first, label = lines[0], lines[0].label or ""
    strange = _plain(first.path) in COLUMNS_OF_PATHS or (
        len(lines) > 1 and has_video_suffix(lines[1].path) and not has_video_suffix(first.path)
    )
    if strange and label and not is_whole(label) and not os.path.lexists(source.root / first.path):
        columns = ", ".join(shown(column) for column in (first.path, *first.extra[:5], label))
        raise InputError(f"{first.where}: {columns} name no video, nor columns that are known, as path,label would")


def _is_named_so(record: str, source: Source) -> bool:
    """Whether a line that begins with # is no comment: it names a file that is there."""
    try:
        line = split_line(record, str(source.path))
    except InputError:
        return False
    return line.label is not None and os.path.lexists(source.root / line.path)


def _header(record: str) -> tuple[str, list[str]]:
    """The separator and the names of columns if a line is a header, else no names."""
    for separator in (*SEPARATORS, None):
        cells = [cell.strip(" \"'") for cell in record.split(separator)]
        if _is_header(cells):
            return separator or " ", cells
    return " ", []


def _cells(record: str, where: str, separator: str, most: int) -> list[str]:
    """The columns of a line; most: from which on separators are part of the last one, 0 for none."""
    if '"' in record:
        return csv_fields(record, where, separator)
    return [cell.strip() for cell in record.split(separator, most - 1)]


def _is_header(cells: Sequence[str]) -> bool:
    words = {_plain(cell) for cell in cells}
    return bool(words & set(COLUMNS_OF_PATHS)) and bool(words & _LABELS or (words & _STARTS and words & _ENDS))


def _plain(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().lower())


def _roles(header: Sequence[str], where: str) -> dict[str, int]:
    """Which column is the path, the label, the number of frames, the split, start and end of a part.

    Raises:
        InputError: other columns, or two for one role.
    """
    words = [_plain(cell) for cell in header]
    roles = {
        "path": min(
            (COLUMNS_OF_PATHS.index(word), place) for place, word in enumerate(words) if word in COLUMNS_OF_PATHS
        )[1]
    }
    columns = {"label": _LABELS, "frames": _FRAMES, "split": _SPLITS, "start": _STARTS, "end": _ENDS}
    for role, known in columns.items():
        found = [place for place, word in enumerate(words) if word in known]
        if len(found) > 1:
            both = " and ".join(repr(header[place]) for place in found)
            raise InputError(f"{where}: the columns {both} may both be the {role}; delete all but one")
        if found:
            roles[role] = found[0]
    for one, other_one in (("start", "end"), ("end", "start")):
        if one in roles and other_one not in roles:
            raise InputError(
                f"{where}: a column {header[roles[one]]!r} without one for the {other_one} of the parts: name both, in "
                "seconds, or delete it"
            )
    known_words = {*COLUMNS_OF_PATHS, *_OF_NO_MATTER, *(word for known in columns.values() for word in known)}
    known_words |= _OF_SEGMENTS if "start" in roles else set()
    other = [shown(cell) for cell, word in zip(header, words, strict=True) if word not in known_words]
    if other and set(words) != _DIVING48:
        raise InputError(
            f"{where}: cannot use the columns {', '.join(other[:10])}: parts of videos have a start and an end in "
            "seconds; delete the columns where they do not matter"
        )
    return roles


def _from_table(
    header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], source: Source, where: str
) -> list[Columns]:
    roles = _roles(header, where)
    starts = [place for place, word in enumerate(header) if _plain(word) == "start_frame" and "start" not in roles]
    found, splits = [], set()
    for where, cells in rows:
        if cells[0].strip("\"'") == header[0] and [cell.strip("\"'") for cell in cells] == list(header):
            raise InputError(f"{where}: names the columns again; delete the line")
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} columns where the first line names {len(header)}")
        if starts and any(cells[place] != "0" for place in starts):
            raise InputError(
                f"{where}: a part of a video that starts at frame {cells[starts[0]]}; give its start and end in seconds"
            )
        if "split" in roles:
            splits.add(cells[roles["split"]])
            if source.split is not None and cells[roles["split"]] != source.split:
                continue
        extra = [cells[roles["frames"]]] if "frames" in roles else []
        times = (cells[roles["start"]], cells[roles["end"]]) if "start" in roles else None
        label = (cells[roles["label"]] or None) if "label" in roles else None
        found.append(Columns(where, cells[roles["path"]], extra, label, counted=True, times=times))
    if "split" not in roles:
        _refuse_split(source)
    elif source.split is None and len(splits) > 1:
        raise InputError(f"{source.path}: holds the splits {', '.join(sorted(splits)[:9])}; choose one with split")
    elif source.split is not None and source.split not in splits:
        raise InputError(f"{source.path}: holds the splits {', '.join(sorted(splits)[:9])}, not {source.split!r}")
    return found


def _refuse_split(source: Source) -> None:
    if source.split is not None:
        raise InputError(f"{source.path}: the list format has no splits; drop split={source.split!r}")


# ---- JSON ----


def _json_objects(text: str, path: Path) -> list[tuple[str, object]] | None:
    """The values of a JSON list or of JSON lines with their places; None where the text is neither."""
    start = text.lstrip()[:1]
    named = path.suffix.lower() in (".json", ".jsonl")
    try:
        if start == "[":
            value = parse_json(text, path)
            entries = value if isinstance(value, list) else []
            return [(f"{path}, entry {n}", entry) for n, entry in enumerate(entries, 1)]
        if start == "{":
            parse_json(next(numbered_lines(text))[1], path)
    except InputError:
        # The name of a video may begin with a bracket.
        if named:
            raise
        return None
    if start != "{":
        return None
    return [(f"{path}, line {number}", parse_json(line, path, number)) for number, line in numbered_lines(text)]


def _from_objects(objects: list[tuple[str, object]], source: Source) -> list[Columns]:
    if not objects:
        return []
    objects = [(where, with_start_and_end(entry, where)) for where, entry in objects]
    where, first = objects[0]
    header = list(first) if isinstance(first, dict) else []
    if not _is_header(header):
        raise InputError(
            f'{where}: expected {{"path": "v.mp4", "label": "jump"}} for a video, found {shown(str(first))}'
        )
    rows = []
    for where, entry in objects:
        if not isinstance(entry, dict) or set(entry) != set(header):
            raise InputError(f"{where}: other fields than those of the first video ({', '.join(header)[:100]})")
        rows.append((where, [_text(entry[key], key, where) for key in header]))
    return _from_table(header, rows, source, objects[0][0])


def _text(value: object, key: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: {key} is {shown(str(value))}, neither text nor a number")
    if isinstance(value, int) and abs(value) >= 10**9:
        raise InputError(f"{where}: {key} is no whole number of up to nine digits")
    return str(value)
