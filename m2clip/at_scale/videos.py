"""Lists of videos without labels, and all formats with labels, whose labels are not needed here."""

from __future__ import annotations

import os
from pathlib import Path

from m2clip.data.lists.annotations import VideoItem, checked, detect_format, load_annotations
from m2clip.data.lists.class_folders import LeftOut, check_name, check_there, videos_below
from m2clip.data.lists.on_disk import Disk, has_video_suffix
from m2clip.data.lists.plain import COLUMNS_OF_PATHS, parse_parts
from m2clip.data.lists.rows import Source
from m2clip.data.lists.text_files import read_lines
from m2clip.errors import InputError

PATHS = "paths"


def read_videos(
    path: str | Path, *, root: str | Path | None = None, format: str = "auto", split: str | None = None
) -> tuple[VideoItem, ...]:
    """The videos of a list, in its order; of a folder all video files below it, in order of their paths.

    Args:
        path: a file with the path of a video in every line, a table of path, start and end in seconds, a folder, or
            what `load_annotations` reads.
        root: folder that relative paths start from; default: the folder of the list.
        format: "auto", "paths" (without labels), or a format of `load_annotations`.
        split: which part, for formats that have parts.

    Raises:
        InputError: no such list, no video in it, a path twice, or what `load_annotations` finds wrong.
    """
    path = Path(path)
    check_there(path, "list or folder of videos")
    check_name(path)
    base = Path(root) if root is not None else path.parent
    lines = None
    if format == "auto" and split is None:
        found = detect_format(path)
        if found == "list":
            if (parts := parse_parts(Source(path, base, None, None))) is not None:
                return checked(parts.rows, None)
            lines = _paths(path, base)
        if found == "folder" or (lines and has_video_suffix(lines[0][1])):
            format = PATHS
    if format != PATHS:
        return load_annotations(path, root=root, format=format, split=split, allow_mismatched_folders=True).items
    if split is not None:
        raise InputError(f"{path}: a list of paths has no splits; drop split={split!r}")
    items = folder_videos(path) if path.is_dir() else _videos(path, base, lines or _paths(path, base))
    if not items:
        raise InputError(f"{path}: lists no videos")
    return items


def folder_videos(folder: Path) -> tuple[VideoItem, ...]:
    """All videos below a folder, in order of their paths; a folder of pictures is one video.

    Raises:
        InputError: there is none, or a folder cannot be read.
    """
    left_out = LeftOut(folder)
    found = videos_below(folder, left_out)
    if not found:
        raise InputError(f"{folder}: holds no videos, found {left_out.describe()}")
    left_out.tell()
    return tuple(VideoItem(path, 0) for path in found)


def _videos(path: Path, root: Path, lines: list[tuple[int, str]]) -> tuple[VideoItem, ...]:
    disk = Disk()
    seen: dict[Path, int] = {}
    for number, line in lines:
        video = disk.meant(root / line, f"{path}, line {number}")
        if video in seen:
            raise InputError(f"{path}, line {number}: duplicate path {video}, already at line {seen[video]}")
        seen[video] = number
    return tuple(VideoItem(video, 0) for video in seen)


def _paths(path: Path, root: Path) -> list[tuple[int, str]]:
    """The paths of a list with their line numbers, without comments and the name of the column."""
    stripped = [(number, line.rstrip(" ,;").strip('"')) for number, line in read_lines(path)]
    lines = [(number, line) for number, line in stripped if line[:1] != "#" or os.path.lexists(root / line)]
    return lines[1:] if lines and lines[0][1].lower() in COLUMNS_OF_PATHS else lines
