"""One parser per annotation format; `m2clip.data.lists.annotations` chooses among them and checks their rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from m2clip.data.lists.class_files import parse_class_file
from m2clip.data.lists.label_sets import load_class_names, match_key
from m2clip.data.lists.lines import SEPARATORS
from m2clip.data.lists.on_disk import Disk, has_video_suffix
from m2clip.data.lists.rows import Parsed, Row, Source
from m2clip.data.lists.text_files import csv_fields, read_json, read_lines, read_records, read_text, shown, whole_number
from m2clip.errors import InputError

_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_SSV2_LABEL_FILES = ("labels.json", "something-something-v2-labels.json")


class ClassLookup:
    """Class name -> label, as `match_key` compares."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._labels: dict[str, int] = {}
        self._found: dict[str, int | None] = {}
        for label, name in enumerate(names):
            other = self._labels.setdefault(match_key(name), label)
            if other != label:
                raise InputError(
                    f"classes {names[other]!r} and {name!r} differ only in case, spaces, underscores or hyphens"
                )

    def find(self, name: str) -> int | None:
        """The label of a class, None where it is none."""
        if name not in self._found:
            self._found[name] = self._labels.get(match_key(name))
        return self._found[name]

    def label(self, name: str, where: str) -> int:
        """The label of a class; InputError where it is none."""
        label = self.find(name)
        if label is None:
            raise self.unknown(name, where)
        return label

    def unknown(self, name: str, where: str) -> InputError:
        """What to tell of a class that is none of these."""
        return InputError(
            f"{where}: class {shown(name)} is not among the {len(self.names)} class names; give those of the videos "
            "(--classes, data.classes; data.classes null takes what the list or folder says)"
        )


def _where(path: Path, line: int) -> str:
    return f"{path}, line {line}"


def parse_kinetics(source: Source) -> Parsed:
    """Kinetics' csv or json: files `{id}_{start:06d}_{end:06d}.mp4`, flat or in class folders; classes sorted."""
    records = _kinetics_json(source.path) if read_text(source.path).lstrip()[:1] == "{" else _kinetics_csv(source)
    if source.split is not None:
        records = [(where, record) for where, record in records if record.get("split") == source.split]
    names = source.class_names or sorted({record["label"] for _, record in records})
    lookup, disk = ClassLookup(names), Disk()
    folders = _class_folders(source.root)
    rows = []
    for where, record in records:
        label = record["label"]
        if not label:
            raise InputError(f"{where}: no label")
        try:
            start, end = (int(float(record[column])) for column in ("time_start", "time_end"))
        except (ValueError, OverflowError):
            raise InputError(f"{where}: time_start and time_end must be numbers of seconds") from None
        folder = folders.get(match_key(label), source.root) if folders else source.root
        path = disk.meant(folder / f"{record['youtube_id']}_{start:06d}_{end:06d}", where)
        if not has_video_suffix(path.name):
            path = path.with_name(f"{path.name}.mp4")
        rows.append(Row(where, path, lookup.label(label, where)))
    return Parsed(rows, names)


def _kinetics_csv(source: Source) -> list[tuple[str, dict[str, str]]]:
    lines = read_records(source.path)
    header = kinetics_header(lines[0][1]) if lines else []
    missing = [column for column in _KINETICS_COLUMNS if column not in header]
    if missing or (source.split is not None and "split" not in header):
        wanted = ",".join((*_KINETICS_COLUMNS, "split"))
        raise InputError(
            f"{_where(source.path, 1)}: expected the columns {wanted}, found no {(missing or ['split'])[0]}"
        )
    separator = next(one for one in SEPARATORS if one in lines[0][1])
    records = []
    for number, line in lines[1:]:
        where = _where(source.path, number)
        fields = csv_fields(line, where, separator)
        if len(fields) != len(header):
            raise InputError(f"{where}: {len(fields)} columns where the header has {len(header)}")
        records.append((where, dict(zip(header, fields, strict=True))))
    return records


def kinetics_header(line: str) -> list[str]:
    """The columns that a line names if it is the header of a csv of Kinetics, else none."""
    header = [field.strip().strip('"').lower() for field in re.split(r"[,;\t]", line)]
    return header if "youtube_id" in header else []


def _kinetics_json(path: Path) -> list[tuple[str, dict[str, str]]]:
    """{"youtube id": {"annotations": {"label": ..., "segment": [start, end]}, "subset": ...}, ...}."""
    entries = read_json(path)
    records = []
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        where = f"{path}, entry {shown(name)}"
        found = entry.get("annotations") if isinstance(entry, dict) else None
        if not isinstance(found, dict) or not isinstance(found.get("label"), str):
            raise InputError(
                f"{where}: no label; expected annotations with a label and a segment (test lists have none)"
            )
        segment = found.get("segment")
        if not isinstance(segment, list) or len(segment) != 2:
            raise InputError(f"{where}: expected a segment of two numbers of seconds")
        times = {"time_start": str(segment[0]), "time_end": str(segment[1])}
        record = {"label": found["label"].strip(), "youtube_id": name, "split": str(entry.get("subset")), **times}
        records.append((where, record))
    return records


def parse_ssv2(source: Source) -> Parsed:
    """Something-Something v2 json: items with `id` and `template`; files `{id}.webm`."""
    entries = read_json(source.path)
    if not isinstance(entries, list):
        raise InputError(f"{source.path}: expected a list of videos, found a {type(entries).__name__}")
    names = source.class_names or _ssv2_names(source.path)
    lookup, disk = ClassLookup(names), Disk()
    rows = []
    for number, entry in enumerate(entries, start=1):
        where = f"{source.path}, entry {number}"
        if not isinstance(entry, dict) or "id" not in entry:
            raise InputError(f"{where}: a video needs an `id`")
        if not entry.get("template"):
            raise InputError(f"{where}: no label; a labelled video needs a `template` (the test list has none)")
        path = disk.meant(source.root / str(entry["id"]), where)
        if not has_video_suffix(path.name) and not disk.is_folder(path):
            path = path.with_name(f"{path.name}.webm")
        rows.append(Row(where, path, lookup.label(str(entry["template"]), where)))
    return Parsed(rows, names)


def _ssv2_names(path: Path) -> list[str]:
    for name in _SSV2_LABEL_FILES:
        if (path.parent / name).is_file():
            return parse_class_file(path.parent / name)
    raise InputError(
        f"{path}: no labels.json beside it; give the class names (--classes, data.classes; 'ssv2' is built in)"
    )


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
        raise InputError(
            f"{path}: no classInd.txt beside it; give the class names (--classes, data.classes; 'ucf101' is built in)"
        )
    lookup = ClassLookup(names)
    rows = []
    for number, line in read_lines(path):
        where = _where(path, number)
        match = re.fullmatch(r"([^/]+)/(.+?\.\w+)(?:\s+(\d+))?", line)
        if not match:
            raise InputError(f"{where}: expected `Class/video.avi` with its class number, found {shown(line)}")
        if match[3] is None and "train" in path.name:
            raise InputError(f"{where}: no label; expected `Class/video.avi label`, found {shown(line)}")
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
                f"{source.path}: split must be 'train' or 'test' for one HMDB51 file, not {source.split!r}; if it is "
                "an ordinary list, say format='list'"
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
                raise InputError(f"{where}: expected `name.avi FLAG` with FLAG 0, 1 or 2, found {shown(line)}")
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

    A path from the list's own machine (`//videos/...`) is taken relative to the root; a bare id gets the suffix of the
    video that is there, else that of the first one that is, else `.webm`. Class names are the given ones; without any
    they are the videos' folders, where there is one for each class.
    """
    entries: list[tuple[str, str, int, str]] = []
    for number, line in read_lines(source.path):
        where = _where(source.path, number)
        match = re.fullmatch(r"(train|val|test)(\d+)/(.+)", line)
        if not match:
            raise InputError(f"{where}: no label; expected `train0/path`, found {shown(line)}")
        entries.append((where, match[1], whole_number(match[2], where), match[3]))
    splits = sorted({split for _, split, _, _ in entries})
    wanted = source.split or (splits[0] if len(splits) == 1 else None)
    if wanted not in splits:
        raise InputError(f"{source.path}: holds the splits {', '.join(splits)}; choose one, not split={source.split!r}")
    disk, suffix = Disk(), ""
    found: list[tuple[str, Path, int]] = []
    folders: dict[int, set[str]] = {}
    for where, split, label, name in entries:
        if split != wanted:
            continue
        relative = Path(name.lstrip("/"))
        if not relative.name:
            raise InputError(f"{where}: no name of a video after {split}{label}/")
        folders.setdefault(label, set()).add(relative.parent.name)
        path = disk.meant(source.root / relative, where)
        suffix = suffix or (path.suffix if has_video_suffix(path.name) and not relative.suffix else "")
        found.append((where, path, label))
    rows = [
        Row(where, path if path.suffix or disk.is_folder(path) else path.with_suffix(suffix or ".webm"), label)
        for where, path, label in found
    ]
    return Parsed(rows, source.class_names or _folder_names(folders))


def _folder_names(folders: dict[int, set[str]]) -> list[str] | None:
    """Class names from the class folders, if each label has exactly one of its own."""
    single = [next(iter(folders[label])) for label in sorted(folders) if len(folders[label]) == 1]
    complete = sorted(folders) == list(range(len(folders))) and len(single) == len(folders) == len(set(single))
    return [name.replace("_", " ") for name in single] if complete and all(single) else None


def subfolders(path: Path) -> Iterable[Path]:
    """The folders in a folder, linked ones too."""
    return (Path(entry.path) for entry in os.scandir(path) if entry.is_dir())


def _class_folders(root: Path) -> dict[str, Path]:
    return {match_key(folder.name): folder for folder in subfolders(root)} if root.is_dir() else {}
