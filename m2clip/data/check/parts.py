"""Whether the videos of a list have the parts that it names, before hours of training depend on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from m2clip.data.lists.annotations import Annotations
from m2clip.data.lists.rows import VideoItem
from m2clip.data.video.isolated import open_isolated
from m2clip.data.video.readers import SegmentError, Video, VideoError, open_video
from m2clip.errors import InputError


def check_parts(annotations: Annotations, isolate: bool = False) -> None:
    """Refuse a list with parts after the end of their videos; what cannot be read is another matter.

    Each file is opened for the part that ends last, and for its others only where it has not that one.

    Args:
        annotations: the list.
        isolate: open files in child processes, which a video may crash.

    Raises:
        InputError: how many there are, and what is wrong with the first.
    """
    by_path: dict[Path, list[VideoItem]] = {}
    for item in annotations.items:
        if item.segment is not None and item.sample is None:
            by_path.setdefault(item.path, []).append(item)
    if not by_path:
        return
    opener = open_isolated if isolate else open_video
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wrong = [problem for of_file in pool.map(_problems, by_path.values(), repeat(opener)) for problem in of_file]
    if wrong:
        raise InputError(
            f"{annotations.source}: {len(wrong)} of {len(annotations)} parts are not in their videos, first "
            f"{wrong[0]}; correct the list, or use the clean list of m2clip check"
        )


def _problems(items: list[VideoItem], opener: Callable[..., Video]) -> list[str]:
    """What is wrong with parts of one file, from the one that ends last back to the first that is there."""
    found: list[str] = []
    for item in sorted(items, key=lambda one: one.segment.end if one.segment else 0.0, reverse=True):
        try:
            opener(item.path, segment=item.segment).close()
            break
        except SegmentError as error:
            found.append(str(error))
        except VideoError:
            break
    return found[::-1]
