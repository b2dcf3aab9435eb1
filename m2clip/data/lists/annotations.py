"""Lists of labelled videos: one type for every published annotation format."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2clip.data.lists import formats, segments
from m2clip.data.lists.class_folders import check_name, check_there, parse_folder
from m2clip.data.lists.class_names import name_list
from m2clip.data.lists.detection import detect_format
from m2clip.data.lists.folder_labels import contradicted
from m2clip.data.lists.label_sets import match_key, numbered_class_names
from m2clip.data.lists.plain import parse_frames, parse_list
from m2clip.data.lists.rows import Parsed, Row, Source, VideoItem
from m2clip.data.lists.suffixes import VIDEO_SUFFIXES
from m2clip.data.lists.text_files import one_line, shown
from m2clip.data.packs.frames import parse_shards
from m2clip.data.segment import Segment
from m2clip.errors import InputError
from m2clip.plugins import registered

__all__ = [
    "FORMATS",
    "VIDEO_SUFFIXES",
    "Annotations",
    "VideoItem",
    "detect_format",
    "list_hash",
    "load_annotations",
    "read_rows",
]

FORMATS: dict[str, Callable[[Source], Parsed]] = {
    "list": parse_list,
    "kinetics": formats.parse_kinetics,
    "ssv2": formats.parse_ssv2,
    "ucf101": formats.parse_ucf101,
    "hmdb51": formats.parse_hmdb51,
    "frames": parse_frames,
    "episodes": formats.parse_episodes,
    "activitynet": segments.parse_activitynet,
    "epic_verbs": segments.parse_epic_verbs,
    "epic_nouns": segments.parse_epic_nouns,
    "folder": parse_folder,
    "shards": parse_shards,
}


@dataclass(frozen=True)
class Annotations:
    """A list of labelled videos.

    Args:
        items: the videos in file order.
        class_names: names in label order, None where neither the format nor the caller knows them.
        format: the format that was read, a key of `FORMATS`.
        source: the file or folder that was read.
    """

    items: tuple[VideoItem, ...]
    class_names: list[str] | None
    format: str
    source: Path

    def __len__(self) -> int:
        return len(self.items)

    def select_classes(self, names: Sequence[str]) -> Annotations:
        """The videos of the classes `names`, labelled in that order (base and novel halves).

        Raises:
            InputError: class names are unknown here, or one of `names` is none of them.
        """
        if self.class_names is None:
            raise InputError(f"{self.source}: classes cannot be selected by name, as the list has no class names")
        wanted = {match_key(name): label for label, name in enumerate(name_list(names))}
        own_keys = [match_key(own) for own in self.class_names]
        known = set(own_keys)
        unknown = next((name for name in names if match_key(name) not in known), None)
        if unknown is not None:
            raise InputError(f"{self.source}: class {unknown!r} is not among its {len(self.class_names)} classes")
        new_label = [wanted.get(key) for key in own_keys]
        kept = ((item, new_label[item.label]) for item in self.items)
        items = tuple(replace(item, label=label) for item, label in kept if label is not None)
        return replace(self, items=items, class_names=list(names))

    def few_shot(self, shots: int, seed: int) -> Annotations:
        """`shots` videos of every class, drawn by `seed`, in file order.

        Raises:
            InputError: a class has fewer videos.
        """
        by_label: dict[int, list[int]] = {}
        for index, item in enumerate(self.items):
            by_label.setdefault(item.label, []).append(index)
        chosen: list[int] = []
        for label in range(len(self.class_names)) if self.class_names else sorted(by_label):
            indices = by_label.get(label, [])
            if len(indices) < shots:
                raise InputError(
                    f"{self.source}: class {label} has {len(indices)} videos, {shots} shots were asked for"
                )
            chosen += random.Random(f"{seed}/{label}").sample(indices, shots)
        return replace(self, items=tuple(self.items[index] for index in sorted(chosen)))


def load_annotations(
    path: str | Path,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    class_names: str | Path | Sequence[str] | None = None,
    split: str | int | None = None,
    allow_mismatched_folders: bool = False,
) -> Annotations:
    """Read a list of labelled videos. Whether the video files exist is not checked here.

    Args:
        path: annotation file, or a folder (one sub-folder of videos per class, UCF101's / HMDB51's split files, or what
            `m2clip pack` wrote).
        root: folder that relative video paths start from; default: the folder of the annotation file.
        format: "auto" or a key of `FORMATS`: "list" (`path label`, as lines, csv with or without a header, or JSON),
            "kinetics" (csv or json), "ssv2" (json), "ucf101", "hmdb51", "frames" (`path num_frames label`, of folders
            of images or of videos without suffix), "episodes" (`train0//path`), "activitynet" (json of segments, also
            of THUMOS and HACS), "epic_verbs" and "epic_nouns" (csv of EPIC-Kitchens), "folder", "shards" (a pack: its
            folder or manifest.json).
        class_names: names in label order, or a built-in list or class file for `load_class_names`. Formats that name
            their classes are matched by name (case, spaces and underscores do not count).
        split: which part: "train1" ... "test3" for a folder of UCF101 or HMDB51; the split column for kinetics or a
            table; the subset for activitynet; the split prefix for episodes; a sub-folder for "folder". Other formats
            have none.
        allow_mismatched_folders: take rows that lie in the folder of another class than their label's.

    Raises:
        InputError: one line with file and line number: no label, label out of range, duplicate path, not UTF-8,
            folders named as other classes, ...
    """
    path = Path(path)
    parsed, chosen = read_rows(path, root=root, format=format, class_names=class_names, split=split)
    items = checked(parsed.rows, parsed.class_names)
    if not items:
        raise InputError(f"{path}: lists no videos" + (f" of split {str(split)!r}" if split is not None else ""))
    _check_frames(path, parsed.rows)
    if not allow_mismatched_folders and parsed.class_names is not None:
        _check_folders(path, parsed.rows, parsed.class_names)
    return Annotations(items, parsed.class_names, chosen, path)


def _check_frames(path: Path, rows: Sequence[Row]) -> None:
    empty = [row for row in rows if row.num_frames == 0]
    if empty:
        raise InputError(
            f"{path}: {len(empty)} of {len(rows)} videos have 0 frames, first {one_line(empty[0].path)} "
            f"({empty[0].where.rpartition(', ')[2]}); delete their lines, or use the clean list of m2clip check"
        )


def _check_folders(path: Path, rows: Sequence[Row], class_names: Sequence[str]) -> None:
    wrong = contradicted(rows, class_names)
    if wrong:
        place, folder = next(iter(wrong.items()))
        row = rows[place]
        raise InputError(
            f"{path}: {len(wrong)} of {len(rows)} videos lie in the folder of another class than their label, first "
            f"{one_line(row.path)} ({row.where.rpartition(', ')[2]}): labelled {class_names[row.label]!r}, in the "
            f"folder of {folder!r}; give the class names in the order of the list's numbers, or, if the labels are "
            "right, --allow-mismatched-folders (data.allow_mismatched_folders: true)"
        )


def read_rows(
    path: Path,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    class_names: str | Path | Sequence[str] | None = None,
    split: str | int | None = None,
) -> tuple[Parsed, str]:
    """The lines of a list as they are, with wrong labels and repeated paths, and the list's format.

    Args:
        path: as for `load_annotations`.
        root: as for `load_annotations`.
        format: as for `load_annotations`.
        class_names: as for `load_annotations`.
        split: as for `load_annotations`.

    Raises:
        InputError: a line that cannot be understood.
    """
    check_there(path, "annotation file or folder")
    check_name(path)
    parse = None if format == "auto" else find_format(format)
    first, names = 0, None
    if isinstance(class_names, (str, Path)):
        first, names = numbered_class_names(class_names)
    elif class_names is not None:
        names = name_list(class_names)
    chosen = detect_format(path, names) if format == "auto" else format
    split = None if split is None else str(split)
    if split is not None and chosen in ("ssv2", "frames", "shards"):
        raise InputError(f"{path}: the {chosen} format has no splits; drop split={split!r}")
    base = Path(root) if root is not None else (path if path.is_dir() else path.parent)
    return (parse or FORMATS[chosen])(Source(path, base, names, split, first)), chosen


def find_format(name: str) -> Callable[[Source], Parsed]:
    """The parser of a format: one of `FORMATS`, or what another package registers in the group `m2clip.formats`.

    Raises:
        InputError: there is none of this name.
    """
    if name in FORMATS:
        return FORMATS[name]
    parse = registered("m2clip.formats", name, callable, "annotation format", ("auto", *FORMATS))

    def parse_or_refuse(source: Source) -> Parsed:
        try:
            parsed = parse(source)
        except InputError:
            raise
        except Exception as error:  # whatever foreign code does with a file that it does not expect
            raise InputError(f"{source.path}: annotation format {name!r} cannot read it: {error!r}") from error
        if not isinstance(parsed, Parsed):
            raise InputError(f"annotation format {name!r} gives {type(parsed).__name__}, not m2clip's Parsed")
        return parsed

    return parse_or_refuse


def list_hash(items: Sequence[VideoItem]) -> str:
    """First 16 hex digits of SHA-256 over the lines "path<TAB>label", of a part with "<TAB>start-end", in list order.

    The folder common to all paths is left out, so that the hash is the same on every machine. A pack from which no
    video is missing has the hash of the list that was packed: the videos are the same, and stored episodes of them fit.

    Args:
        items: the videos.
    """
    paths = [os.path.abspath(item.path) for item in items]
    common = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    start = len(os.path.join(common, ""))
    lines = (
        f"{path[start:]}\t{item.label}" + (f"\t{item.segment.tag}\n" if item.segment is not None else "\n")
        for path, item in zip(paths, items, strict=True)
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def packed_hash(items: Sequence[VideoItem]) -> str | None:
    """Identity of the frames that packs hold of the videos, None without packs: a pack's list is that of its videos."""
    sums = [str(item.sample.crc32) for item in items if item.sample is not None]
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()[:16] if sums else None


def checked(rows: Sequence[Row], class_names: list[str] | None) -> tuple[VideoItem, ...]:
    """The videos of the lines of a list; InputError for labels, parts and names that cannot be, or a video twice."""
    seen: dict[tuple[str, Segment | None], str] = {}
    for row in rows:
        if row.label < 0:
            raise InputError(f"{row.where}: label {row.label} is negative; labels start at 0")
        if class_names is not None and row.label >= len(class_names):
            raise InputError(
                f"{row.where}: label {row.label} is out of range; "
                f"there are {len(class_names)} classes, 0 to {len(class_names) - 1}"
            )
        _check_name(row)
        if row.segment is not None and row.segment.problem is not None:
            raise InputError(f"{row.where}: {row.segment.problem}, of {one_line(row.path)}")
        key = str(row.path), row.segment
        if key in seen:
            what = "path" if row.segment is None else f"segment {row.segment} of"
            raise InputError(f"{row.where}: duplicate {what} {one_line(row.path)}, already at {seen[key]}")
        seen[key] = row.where
    return tuple(
        VideoItem(row.path, row.label, row.num_frames, sample=row.sample, segment=row.segment, cut_from=row.cut_from)
        for row in rows
    )


def _check_name(row: Row) -> None:
    """Refuse what no file can be called; a missing file is another matter."""
    path = str(row.path)
    if len(path) < 256 and path.isascii() and "\0" not in path:
        return
    try:
        name = os.fsencode(path)
        impossible = b"\0" in name or len(name) >= 4096 or any(len(part) > 255 for part in name.split(b"/"))
    except UnicodeEncodeError:
        impossible = True
    if impossible:
        raise InputError(f"{row.where}: {shown(str(row.path))} cannot be the name of a file")
