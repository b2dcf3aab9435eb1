"""Lists of parts of videos: ActivityNet's json, which THUMOS and HACS share, and EPIC-Kitchens' csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from m2clip.data.lists.class_names import composed, match_key, natural_key
from m2clip.data.lists.formats import ClassLookup
from m2clip.data.lists.on_disk import Disk, has_video_suffix
from m2clip.data.lists.rows import Parsed, Row, Source
from m2clip.data.lists.text_files import csv_fields, read_json, read_records, shown, whole_number
from m2clip.data.segment import Segment, parse_seconds
from m2clip.errors import InputError

_PREFIXES = ("", "v_")  # of the files of ActivityNet's videos
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")


def read_segment(start: str, end: str, where: str) -> Segment:
    """A part of a video, which may be none that a video can have.

    Args:
        start: a number of seconds, or hh:mm:ss.
        end: likewise.
        where: file and line, for messages.

    Raises:
        InputError: something else.
    """
    times = []
    for text, what in ((start, "start"), (end, "end")):
        seconds = parse_seconds(text.strip())
        if seconds is None:
            given = shown(text) if text.strip() else "nothing"
            raise InputError(f"{where}: the {what} of a part is a number of seconds, or hh:mm:ss, not {given}")
        times.append(seconds)
    return Segment(*times)


def with_start_and_end(entry: object, where: str) -> object:
    """An entry of a JSON list whose field `segment`, if there is one, has become `start` and `end`."""
    if not isinstance(entry, dict) or "segment" not in entry:
        return entry
    pair = entry["segment"]
    if not isinstance(pair, list) or len(pair) != 2:
        raise InputError(f"{where}: segment is {shown(str(pair))}, not a start and an end in seconds")
    rest = {key: value for key, value in entry.items() if key != "segment"}
    if rest.keys() & {"start", "end"}:
        raise InputError(f"{where}: has a segment, and a start or end beside it; delete one")
    return {**rest, "start": pair[0], "end": pair[1]}


# ---- ActivityNet, THUMOS, HACS ----


@dataclass(frozen=True)
class Annotated:
    """An entry of ActivityNet's json.

    Attributes:
        video: name of the video.
        subset: the part of the data set that it belongs to.
        parts: its segments and the names of their classes.
        where: file and entry, for messages.
    """

    video: str
    subset: str
    parts: list[tuple[Segment, str]]
    where: str


def is_database(value: object) -> bool:
    """Whether a JSON value is one of ActivityNet: videos below "database", or their annotations in lists."""
    if not isinstance(value, Mapping):
        return False
    if isinstance(value.get("database"), Mapping):
        return True
    entry = next(iter(value.values()), None)
    return isinstance(entry, Mapping) and isinstance(entry.get("annotations"), list)


def read_database(path: Path) -> list[Annotated]:
    """The videos of ActivityNet's json; segments may be none that a video can have.

    The file is {"database": {video: {"subset": ..., "annotations": [{"segment": [start, end], "label": ...}, ...]}}},
    or what stands behind "database" alone.

    Raises:
        InputError: something else, or no video.
    """
    value = read_json(path)
    database = value.get("database", value) if isinstance(value, Mapping) else None
    if (
        not isinstance(database, Mapping)
        or not database
        or not all(isinstance(one, Mapping) for one in database.values())
    ):
        raise InputError(f'{path}: expected videos below "database", as in ActivityNet\'s json')
    return [_annotated(name, entry, f"{path}, entry {shown(name)}") for name, entry in database.items()]


def _annotated(name: str, entry: Mapping[str, Any], where: str) -> Annotated:
    parts = entry.get("annotations") or []
    found = []
    for part in parts if isinstance(parts, list) else [parts]:
        label, times = (part.get("label"), part.get("segment")) if isinstance(part, Mapping) else (None, None)
        if not isinstance(label, str) or not match_key(label) or not isinstance(times, list) or len(times) != 2:
            raise InputError(f'{where}: an annotation without "segment": [start, end] and "label"')
        found.append((read_segment(str(times[0]), str(times[1]), where), composed(label.strip())))
    return Annotated(name, str(entry.get("subset")), found, where)


def of_subset(videos: list[Annotated], split: str | None, path: Path) -> list[Annotated]:
    """The videos of one subset, or all; InputError where there is no such subset."""
    chosen = [one for one in videos if split is None or one.subset == split]
    if not chosen:
        known = ", ".join(sorted({one.subset for one in videos}))
        raise InputError(f"{path}: holds the splits {known}, not {split!r}")
    return chosen


def video_file(name: str, root: Path, disk: Disk, where: str) -> Path:
    """The file of a video of ActivityNet's json: NAME or v_NAME with any suffix, NAME.mp4 if neither is there."""
    found = [disk.meant(root / f"{prefix}{name}", where) for prefix in _PREFIXES]
    return next((path for path in found if disk.is_there(path)), _with_suffix(found[0]))


def parse_activitynet(source: Source) -> Parsed:
    """ActivityNet's json, which THUMOS and HACS share: a video for each segment; classes sorted, of all subsets.

    Files are those of `video_file`.
    """
    videos = read_database(source.path)
    names = source.class_names or _class_names(videos)
    lookup, disk = ClassLookup(names), Disk()
    subsets = sorted({one.subset for one in videos if one.parts})
    if source.split is None and len(subsets) > 1:
        raise InputError(f"{source.path}: holds the splits {', '.join(subsets)}; choose one with split")
    rows = []
    for one in of_subset(videos, source.split, source.path):
        path = video_file(one.video, source.root, disk, one.where) if one.parts else source.root
        for number, (segment, label) in enumerate(one.parts, start=1):
            where = f"{source.path}, segment {number} of {shown(one.video)}"
            rows.append(Row(where, path, lookup.label(label, where), segment=segment))
    return Parsed(rows, names)


def _class_names(videos: list[Annotated]) -> list[str]:
    names: dict[str, str] = {}
    for one in videos:
        for _, label in one.parts:
            names.setdefault(match_key(label), label)
    return sorted(names.values(), key=natural_key)


# ---- EPIC-Kitchens ----


def is_epic(line: str) -> bool:
    """Whether a line is the header of EPIC-Kitchens' csv."""
    columns = [column.strip().strip('"') for column in line.split(",")]
    return set(_EPIC_COLUMNS) <= set(columns) and bool({"verb_class", "noun_class"} & set(columns))


def _parse_epic(source: Source, what: str) -> Parsed:
    """EPIC-Kitchens' csv: one action per line; `what` is "verb" or "noun".

    Class names that are not given are those of the file EPIC_100_{what}_classes.csv beside the list. Videos are
    VIDEO.MP4 in the root, in the participant's folder, or in `videos` below that.
    """
    if source.split is not None:
        raise InputError(f"{source.path}: is one split already; drop split={source.split!r}")
    names, disk = source.class_names or _epic_names(source.path, what), Disk()
    files: dict[str, Path] = {}
    rows = []
    for where, record in _epic_records(source.path, f"{what}_class"):
        video = record["video_id"]
        if video not in files:
            files[video] = _epic_file(video, source.root, disk, where)
        segment = read_segment(record["start_timestamp"], record["stop_timestamp"], where)
        rows.append(Row(where, files[video], whole_number(record[f"{what}_class"], where), segment=segment))
    return Parsed(rows, names)


parse_epic_verbs = partial(_parse_epic, what="verb")
parse_epic_nouns = partial(_parse_epic, what="noun")


def _epic_records(path: Path, label: str) -> Iterator[tuple[str, dict[str, str]]]:
    lines = read_records(path)
    header = csv_fields(lines[0][1], f"{path}, line 1") if lines else []
    missing = next((column for column in (*_EPIC_COLUMNS, label) if column not in header), None)
    if missing is not None:
        raise InputError(
            f"{path}, line 1: expected the columns of EPIC-Kitchens, found no {missing} (test lists have no labels)"
        )
    for number, line in lines[1:]:
        where = f"{path}, line {number}"
        fields = csv_fields(line, where)
        if len(fields) != len(header):
            raise InputError(f"{where}: {len(fields)} columns where the header has {len(header)}")
        yield where, dict(zip(header, fields, strict=True))


def _epic_file(video: str, root: Path, disk: Disk, where: str) -> Path:
    person = video.partition("_")[0]
    found = [disk.meant(root / folder / video, where) for folder in ("", person, f"{person}/videos")]
    return next((path for path in found if disk.is_there(path)), _with_suffix(found[0], ".MP4"))


def _epic_names(path: Path, what: str) -> list[str] | None:
    """The names in the class file beside a list: columns id, key and more."""
    file = path.with_name(f"EPIC_100_{what}_classes.csv")
    if not file.is_file():
        return None
    lines = read_records(file)
    header = csv_fields(lines[0][1], f"{file}, line 1") if lines else []
    if not {"id", "key"} <= set(header):
        raise InputError(f"{file}, line 1: expected the columns id and key")
    names: dict[int, str] = {}
    for number, line in lines[1:]:
        where = f"{file}, line {number}"
        record = dict(zip(header, csv_fields(line, where), strict=False))
        names[whole_number(record["id"], where)] = record.get("key", "")
    if sorted(names) != list(range(len(names))):
        raise InputError(f"{file}: class ids must run from 0 without a gap")
    return [names[number] for number in range(len(names))]


def _with_suffix(path: Path, suffix: str = ".mp4") -> Path:
    """A path that is not there, as that of a video file."""
    return path if has_video_suffix(path.name) else path.with_name(f"{path.name}{suffix}")
