"""Lists of videos without labels, and all formats with labels, whose labels are not needed here."""

from __future__ import annotations

import os
from pathlib import Path

from m2clip.data.annotations import VIDEO_SUFFIXES, VideoItem, detect_format, load_annotations
from m2clip.data.label_sets import read_lines
from m2clip.errors import InputError

PATHS = "paths"


def read_videos(
    path: str | Path, *, root: str | Path | None = None, format: str = "auto", split: str | None = None
) -> tuple[VideoItem, ...]:
    """The videos of a list, in its order; of a folder all video files below it, in order of their paths.

    Args:
        path: a file with the path of a video in every line, a folder, or what `load_annotations` reads.
        root: folder that relative paths start from; default: the folder of the list.
        format: "auto", "paths" (without labels), or a format of `load_annotations`.
        split: which part, for formats that have parts.

    Raises:
        InputError: no such list, no video in it, a path twice, or what `load_annotations` finds wrong.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such list or folder of videos")
    if format == "auto" and split is None and _is_plain(path):
        format = PATHS
    if format != PATHS:
        return load_annotations(path, root=root, format=format, split=split).items
    if split is not None:
        raise InputError(f"{path}: a list of paths has no splits; drop split={split!r}")
    base = Path(root) if root is not None else path.parent
    items = _below(path) if path.is_dir() else _lines(path, base)
    if not items:
        raise InputError(f"{path}: holds no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return items


def _is_plain(path: Path) -> bool:
    found = detect_format(path)
    if path.is_dir():
        return found == "folder"
    lines = read_lines(path) if found == "list" else []
    return bool(lines) and Path(lines[0][1].strip('"')).suffix.lower() in VIDEO_SUFFIXES


def _below(folder: Path) -> tuple[VideoItem, ...]:
    paths: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(f"{path.parent}: file name {os.fsencode(path.name)!r} is not UTF-8; rename it") from None
    return tuple(VideoItem(path, 0) for path in sorted(paths) if not path.name.startswith("."))


def _lines(path: Path, root: Path) -> tuple[VideoItem, ...]:
    seen: dict[Path, int] = {}
    for number, line in read_lines(path):
        video = root / line.strip('"')
        if video in seen:
            raise InputError(f"{path}, line {number}: duplicate path {video}, already at line {seen[video]}")
        seen[video] = number
    return tuple(VideoItem(video, 0) for video in seen)
