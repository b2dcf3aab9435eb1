"""One parser per annotation format; `m2clip.data.annotations` chooses among them and checks their rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m2clip.data.label_sets import (
    csv_fields,
    load_class_names,
    match_key,
    parse_class_file,
    read_json,
    read_lines,
    whole_number,
)
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.data.shards import ShardSample

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".gif", ".ogv"]
)
FRAME_PATTERN = "img_{:05d}.jpg"

_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_SSV2_LABEL_FILES = ("labels.json", "something-something-v2-labels.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One parsed line: `where` is "file, line N" for messages, the rest as in `VideoItem`."""

    where: str
    path: Path
    label: int
    num_frames: int | None = None
    pattern: str | None = None
    sample: ShardSample | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What to parse: file or folder, root of relative paths, class names given by the caller, wanted split."""

    path: Path
    root: Path
    class_names: list[str] | None
    split: str | None


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rows of a source and the class names they refer to (None: unknown)."""

    rows: list[Row]
    class_names: list[str] | None


class ClassLookup:
    """Class name -> label, blind to case, spaces and underscores."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._labels: dict[str, int] = {}
        for label, name in enumerate(names):
            other = self._labels.setdefault(match_key(name), label)
            if other != label:
                raise InputError(f"classes {names[other]!r} and {name!r} differ only in case, spaces or underscores")

    def label(self, name: str, where: str) -> int:
        label = self._labels.get(match_key(name))
        if label is None:
            raise InputError(f"{where}: class {name!r} is not among the {len(self.names)} class names")
        return label


def _where(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def parse_list(source: Source) -> Parsed:
    """`rel/path.mp4 INT`, also separated by a comma or tab; the path may hold spaces."""
    rows = []
    for number, line in read_lines(source.path):
        where = _where(source.path, number)
        match = re.fullmatch(r"(.+?)(?:\s*,\s*|\s+)([+-]?\d+)", line)
        if not match:
            raise InputError(f"{where}: no label; expected `path label` with a whole number, found {line!r}")
        rows.append(Row(where, source.root / match[1].strip('"'), whole_number(match[2], where)))
    return Parsed(rows, source.class_names)


def parse_frames(source: Source) -> Parsed:
    """`dir num_frames label`: folders of images img_00001.jpg, img_00002.jpg, ..."""
    rows = []
    for number, line in read_lines(source.path):
        where = _where(source.path, number)
        match = re.fullmatch(r"(.+?)(?:\s*,\s*|\s+)(\d+)(?:\s*,\s*|\s+)([+-]?\d+)", line)
        if not match:
            raise InputError(f"{where}: no label; expected `folder num_frames label`, found {line!r}")
        frames, label = whole_number(match[2], where), whole_number(match[3], where)
        if frames < 1:
            raise InputError(f"{where}: a video of 0 frames")
        rows.append(Row(where, source.root / match[1].strip('"'), label, frames, FRAME_PATTERN))
    return Parsed(rows, source.class_names)


def parse_kinetics(source: Source) -> Parsed:
    """Kinetics csv: files `{id}_{start:06d}_{end:06d}.mp4`, flat or in class folders; labels in sorted name order."""
    lines = read_lines(source.path)
    header = [field.strip() for field in lines[0][1].split(",")] if lines else []
    if header[:2] != ["label", "youtube_id"] or not set(_KINETICS_COLUMNS) <= set(header):
        raise InputError(f"{_where(source.path, 1)}: expected the columns {','.join(_KINETICS_COLUMNS)}")
    records: list[tuple[str, dict[str, str]]] = []
    for number, line in lines[1:]:
        where = _where(source.path, number)
        fields = csv_fields(line, where)
        if len(fields) != len(header):
            raise InputError(f"{where}: {len(fields)} columns where the header has {len(header)}")
        record = dict(zip(header, fields, strict=True))
        if not record["label"].strip():
            raise InputError(f"{where}: no label")
        if source.split is None or record["split"].strip() == source.split:
            records.append((where, record))
    names = source.class_names or sorted({record["label"].strip() for _, record in records})
    lookup = ClassLookup(names)
    folders = _class_folders(source.root)
    rows = []
    for where, record in records:
        label = record["label"].strip()
        try:
            start, end = (int(float(record[column])) for column in ("time_start", "time_end"))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: time_start and time_end must be numbers of seconds") from None
        folder = folders.get(match_key(label), source.root) if folders else source.root
        path = folder / f"{record['youtube_id'].strip()}_{start:06d}_{end:06d}.mp4"
        rows.append(Row(where, path, lookup.label(label, where)))
    return Parsed(rows, names)


def parse_ssv2(source: Source) -> Parsed:
    """Something-Something v2 json: items with `id` and `template`; files `{id}.webm`."""
    entries = read_json(source.path)
    if not isinstance(entries, list):
        raise InputError(f"{source.path}: expected a list of videos, found a {type(entries).__name__}")
    names = source.class_names or _ssv2_names(source.path)
    lookup = ClassLookup(names)
    rows = []
    for number, entry in enumerate(entries, start=1):
        where = f"{source.path}, entry {number}"
        if not isinstance(entry, dict) or "id" not in entry:
            raise InputError(f"{where}: a video needs an `id`")
        if not entry.get("template"):
            raise InputError(f"{where}: no label; a labelled video needs a `template` (the test list has none)")
        rows.append(Row(where, source.root / f"{entry['id']}.webm", lookup.label(str(entry["template"]), where)))
    return Parsed(rows, names)


def _ssv2_names(path: Path) -> list[str]:
    for name in _SSV2_LABEL_FILES:
        if (path.parent / name).is_file():
            return parse_class_file(path.parent / name)
    raise InputError(f"{path}: no labels.json beside it; give the class names (class_names='ssv2' is built in)")


def parse_ucf101(source: Source) -> Parsed:
    """`trainlist01.txt` (`Class/v.avi 1`) or `testlist01.txt` (`Class/v.avi`), or their folder with split="train1"."""
    path = source.path
    if path.is_dir():
        part, number = _official_split(source)
        path = path / f"{part}list{number:02d}.txt"
        if not path.is_file():
            raise InputError(f"{path}: no such file for split {source.split!r}")
    elif source.split is not None:
        raise InputError(f"{path}: is one split already; give the folder, or drop split={source.split!r}")
    index_file = path.parent / "classInd.txt"
    official = parse_class_file(index_file) if index_file.is_file() else None
    names = source.class_names or official
    if names is None:
        raise InputError(f"{path}: no classInd.txt beside it; give the class names (class_names='ucf101' is built in)")
    lookup = ClassLookup(names)
    rows = []
    for number, line in read_lines(path):
        where = _where(path, number)
        match = re.fullmatch(r"([^/]+)/(.+?\.\w+)(?:\s+(\d+))?", line)
        if not match:
            raise InputError(f"{where}: expected `Class/video.avi` with its class number, found {line!r}")
        if match[3] is None and "train" in path.name:
            raise InputError(f"{where}: no label; expected `Class/video.avi label`, found {line!r}")
        if match[3] is not None and official is not None:
            label = whole_number(match[3], where)
            if not 1 <= label <= len(official) or match_key(official[label - 1]) != match_key(match[1]):
                raise InputError(f"{where}: label {match[3]} is not {match[1]!r} in {index_file.name} (1-based)")
        rows.append(Row(where, source.root / match[1] / match[2], lookup.label(match[1], where)))
    return Parsed(rows, names)


def parse_hmdb51(source: Source) -> Parsed:
    """Folder of `{class}_test_split{1,2,3}.txt` with split="train1", or one such file with split="train" or "test".

    Lines are `name.avi FLAG`: 1 training, 2 testing, 0 in neither. Files lie in class folders below the root.
    """
    if source.path.is_dir():
        part, number = _official_split(source)
        files = sorted(source.path.glob(f"*_test_split{number}.txt"))
        if not files:
            raise InputError(f"{source.path}: holds no files *_test_split{number}.txt")
    else:
        part, files = source.split or "", [source.path]
        if part not in ("train", "test"):
            raise InputError(
                f"{source.path}: split must be 'train' or 'test' for one HMDB51 file, not {source.split!r}"
            )
    flag = {"train": "1", "test": "2"}[part]
    folder_names = [re.sub(r"_test_split\d$", "", file.stem) for file in files]
    names = source.class_names or _hmdb_names(folder_names)
    lookup = ClassLookup(names)
    rows = []
    for file, folder in zip(files, folder_names, strict=True):
        for number, line in read_lines(file):
            where = _where(file, number)
            match = re.fullmatch(r"(.+\.\w+)\s+([012])", line)
            if not match:
                raise InputError(f"{where}: expected `name.avi FLAG` with FLAG 0, 1 or 2, found {line!r}")
            if match[2] == flag:
                rows.append(Row(where, source.root / folder / match[1], lookup.label(folder, where)))
    return Parsed(rows, names)


def _hmdb_names(folder_names: list[str]) -> list[str]:
    """The built-in order where these are its classes, else sorted, so that labels agree with "hmdb51"."""
    built_in = load_class_names("hmdb51")
    if {match_key(name) for name in folder_names} == {match_key(name) for name in built_in}:
        return built_in
    return [name.replace("_", " ") for name in sorted(folder_names)]


def _official_split(source: Source) -> tuple[str, int]:
    match = re.fullmatch(r"(train|test)([123])", source.split or "")
    if not match:
        raise InputError(f"{source.path}: split must be train1, test1, ... test3 for this folder, not {source.split!r}")
    return match[1], int(match[2])


def parse_episodes(source: Source) -> Parsed:
    """Few-shot split lists, `train0//videos/class/x.avi` or `train8/78687`: class ids are local to the split.

    A path from the list's own machine (`//videos/...`) is taken relative to the root; a bare id becomes `{id}.webm`, or
    `{id}.mp4` where the first one lies below the root as such. Class names are the given ones; without any they are the
    videos' folders, where there is one for each class.
    """
    entries: list[tuple[str, str, int, str]] = []
    for number, line in read_lines(source.path):
        where = _where(source.path, number)
        match = re.fullmatch(r"(train|val|test)(\d+)/(.+)", line)
        if not match:
            raise InputError(f"{where}: no label; expected `train0/path`, found {line!r}")
        entries.append((where, match[1], whole_number(match[2], where), match[3]))
    splits = sorted({split for _, split, _, _ in entries})
    wanted = source.split or (splits[0] if len(splits) == 1 else None)
    if wanted not in splits:
        raise InputError(f"{source.path}: holds the splits {', '.join(splits)}; choose one, not split={source.split!r}")
    rows = []
    folders: dict[int, set[str]] = {}
    suffix = ""
    for where, split, label, name in entries:
        if split != wanted:
            continue
        relative = Path(name.lstrip("/"))
        if not relative.name:
            raise InputError(f"{where}: no name of a video after {split}{label}/")
        folders.setdefault(label, set()).add(relative.parent.name)
        if not relative.suffix:
            suffix = suffix or (".mp4" if os.path.isfile((source.root / relative).with_suffix(".mp4")) else ".webm")
            relative = relative.with_suffix(suffix)
        rows.append(Row(where, source.root / relative, label))
    return Parsed(rows, source.class_names or _folder_names(folders))


def _folder_names(folders: dict[int, set[str]]) -> list[str] | None:
    """Class names from the class folders, if each label has exactly one of its own."""
    single = [next(iter(folders[label])) for label in sorted(folders) if len(folders[label]) == 1]
    complete = sorted(folders) == list(range(len(folders))) and len(single) == len(folders) == len(set(single))
    return [name.replace("_", " ") for name in single] if complete and all(single) else None


def parse_folder(source: Source) -> Parsed:
    """One sub-folder of videos per class; class ids in sorted order unless names are given; split = a folder above."""
    top = source.path / source.split if source.split else source.path
    if not top.is_dir():
        raise InputError(f"{top}: no such folder")
    folders = sorted(entry for entry in _subfolders(top) if not entry.name.startswith("."))
    if not folders:
        raise InputError(f"{top}: expected one sub-folder of videos per class, found no sub-folder")
    names = source.class_names or [folder.name.replace("_", " ") for folder in folders]
    lookup = ClassLookup(names)
    rows = []
    for folder in folders:
        label = lookup.label(folder.name, str(folder))
        videos = sorted(file for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES)
        if not videos:
            raise InputError(
                f"{folder}: no video files in this class folder; if it is a split, give split={folder.name!r}"
            )
        for video in videos:
            try:
                video.name.encode()
            except UnicodeEncodeError:
                raise InputError(f"{folder}: file name {os.fsencode(video.name)!r} is not UTF-8; rename it") from None
            rows.append(Row(str(video), video, label))
    return Parsed(rows, names)


def _subfolders(path: Path) -> Iterable[Path]:
    return (Path(entry.path) for entry in os.scandir(path) if entry.is_dir())


def _class_folders(root: Path) -> dict[str, Path]:
    return {match_key(folder.name): folder for folder in _subfolders(root)} if root.is_dir() else {}
