"""Lists of labelled videos: one type for every published annotation format."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m2clip.data import annotation_formats as formats
from m2clip.data.annotation_formats import VIDEO_SUFFIXES, Row, Source
from m2clip.data.label_sets import load_class_names, match_key, read_lines
from m2clip.data.shards import ShardSample, is_pack, parse_shards
from m2clip.errors import InputError

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

FORMATS: dict[str, Callable[[Source], formats.Parsed]] = {
    "list": formats.parse_list,
    "kinetics": formats.parse_kinetics,
    "ssv2": formats.parse_ssv2,
    "ucf101": formats.parse_ucf101,
    "hmdb51": formats.parse_hmdb51,
    "frames": formats.parse_frames,
    "episodes": formats.parse_episodes,
    "folder": formats.parse_folder,
    "shards": parse_shards,
}


@dataclass(frozen=True, slots=True)
class VideoItem:
    """One labelled video.

    Args:
        path: video file, or folder of images where `pattern` is given.
        label: class id from 0.
        num_frames: number of images of a frame folder, None for a video file.
        pattern: name of the images with the frame number from 1, e.g. "img_{:05d}.jpg".
        sample: where its frames are stored, if it is read from a pack; `path` then is that of the packed video, below
            the folder that all videos of the pack had in common.
    """

    path: Path
    label: int
    num_frames: int | None = None
    pattern: str | None = None
    sample: ShardSample | None = None


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
        wanted = {match_key(name): label for label, name in enumerate(names)}
        unknown = [name for name in names if match_key(name) not in {match_key(own) for own in self.class_names}]
        if unknown:
            raise InputError(f"{self.source}: class {unknown[0]!r} is not among its {len(self.class_names)} classes")
        new_label = [wanted.get(match_key(own)) for own in self.class_names]
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
) -> Annotations:
    """Read a list of labelled videos. Whether the video files exist is not checked here.

    Args:
        path: annotation file, or a folder (one sub-folder of videos per class, UCF101's / HMDB51's split files, or what
            `m2clip pack` wrote).
        root: folder that relative video paths start from; default: the folder of the annotation file.
        format: "auto" or a key of `FORMATS`: "list" (`path INT`, also comma separated), "kinetics" (csv), "ssv2"
            (json), "ucf101", "hmdb51", "frames" (`dir num_frames label`), "episodes" (`train0//path`), "folder",
            "shards" (a pack: its folder or manifest.json).
        class_names: names in label order, or a built-in list or class file for `load_class_names`. Formats that name
            their classes are matched by name (case, spaces and underscores do not count).
        split: which part: "train1" ... "test3" for a folder of UCF101 or HMDB51; the split column for kinetics; the
            split prefix for episodes; a sub-folder for "folder". Other formats have none.

    Raises:
        InputError: one line with file and line number: no label, label out of range, duplicate path, not UTF-8, ...
    """
    path = Path(path)
    parsed, chosen = read_rows(path, root=root, format=format, class_names=class_names, split=split)
    items = _checked(parsed.rows, parsed.class_names)
    if not items:
        raise InputError(f"{path}: lists no videos" + (f" of split {str(split)!r}" if split is not None else ""))
    return Annotations(items, parsed.class_names, chosen, path)


def read_rows(
    path: Path,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    class_names: str | Path | Sequence[str] | None = None,
    split: str | int | None = None,
) -> tuple[formats.Parsed, str]:
    """The lines of a list as they are, with wrong labels and repeated paths, and the list's format.

    Args:
        path, root, format, class_names, split: as for `load_annotations`.

    Raises:
        InputError: a line that cannot be understood.
    """
    if not path.exists():
        raise InputError(f"{path}: no such annotation file or folder")
    if format != "auto" and format not in FORMATS:
        raise InputError(f"unknown annotation format {format!r}; choose from auto, {', '.join(FORMATS)}")
    names: list[str] | None
    if class_names is None:
        names = None
    elif isinstance(class_names, (str, Path)):
        names = load_class_names(class_names)
    else:
        names = list(class_names)
    chosen = detect_format(path) if format == "auto" else format
    split = None if split is None else str(split)
    if split is not None and chosen in ("list", "ssv2", "frames", "shards"):
        raise InputError(f"{path}: the {chosen} format has no splits; drop split={split!r}")
    base = Path(root) if root is not None else (path if path.is_dir() else path.parent)
    return FORMATS[chosen](Source(path, base, names, split)), chosen


def list_hash(items: Sequence[VideoItem]) -> str:
    """First 16 hex digits of SHA-256 over the lines "path<TAB>label" in list order.

    The folder common to all paths is left out, so that the hash is the same on every machine. A pack from which no
    video is missing has the hash of the list that was packed: the videos are the same, and stored episodes of them fit.

    Args:
        items: the videos.
    """
    paths = [os.path.abspath(item.path) for item in items]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    lines = (
        f"{Path(os.path.relpath(path, common)).as_posix()}\t{item.label}\n"
        for path, item in zip(paths, items, strict=True)
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def detect_format(path: Path) -> str:
    """The annotation format of a file or folder, from its name and its first line."""
    if is_pack(path):
        return "shards"
    if path.is_dir():
        if (path / "classInd.txt").is_file():
            return "ucf101"
        return "hmdb51" if next(path.glob("*_test_split[123].txt"), None) else "folder"
    if path.suffix.lower() == ".json":
        return "ssv2"
    if re.fullmatch(r"(train|test)list\d+\.txt", path.name):
        return "ucf101"
    if re.fullmatch(r".+_test_split[123]\.txt", path.name):
        return "hmdb51"
    lines = read_lines(path)
    first = lines[0][1] if lines else ""
    if first.replace(" ", "").startswith("label,youtube_id,"):
        return "kinetics"
    if re.match(r"(train|val|test)\d+/", first) and not re.search(r"[\s,]\d+$", first):
        return "episodes"
    frames = re.fullmatch(r"(.+?)[\s,]+\d+[\s,]+\d+", first)
    if frames and Path(frames[1]).suffix.lower() not in VIDEO_SUFFIXES:
        return "frames"
    return "list"


def _checked(rows: Sequence[Row], class_names: list[str] | None) -> tuple[VideoItem, ...]:
    seen: dict[Path, str] = {}
    for row in rows:
        if row.label < 0:
            raise InputError(f"{row.where}: label {row.label} is negative; labels start at 0")
        if class_names is not None and row.label >= len(class_names):
            raise InputError(
                f"{row.where}: label {row.label} is out of range; "
                f"there are {len(class_names)} classes, 0 to {len(class_names) - 1}"
            )
        _check_name(row)
        if row.path in seen:
            raise InputError(f"{row.where}: duplicate path {row.path}, already at {seen[row.path]}")
        seen[row.path] = row.where
    return tuple(VideoItem(row.path, row.label, row.num_frames, row.pattern, row.sample) for row in rows)


def _check_name(row: Row) -> None:
    """Refuse what no file can be called; a missing file is another matter."""
    try:
        name = os.fsencode(row.path)
        impossible = b"\0" in name or len(name) >= 4096 or any(len(part) > 255 for part in name.split(b"/"))
    except UnicodeEncodeError:
        impossible = True
    if impossible:
        shown = repr(str(row.path))
        raise InputError(f"{row.where}: {shown[:200]} cannot be the name of a file")
