"""Folders with one image per frame."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2clip.data.video.base import Video, VideoError, check_length, stack
from m2clip.data.video.pictures import IMAGE_SUFFIXES, read_picture
from m2clip.errors import InputError

# What tools leave beside frames: optical flow, small pictures for display, labels of pixels.
_BESIDE = re.compile(
    r"(?<![a-z])(?:flow[xyuv]?|thumb(?:nail)?s?|masks?|depth|preview|poster|cover|folder)(?![a-z])", re.IGNORECASE
)
_PATTERN = re.compile(r"([^{}]*)\{(?::0?\d{0,2}d?)?\}([^{}]*)")
# The names of TSN's frames, which most lists of frames mean.
_USUAL = "img_#"


class FrameFolder(Video):
    """A folder with one image per frame, in the order of the numbers in their names.

    Args:
        path: the folder.
        expected: names that are expected, such as "img_{:05d}.jpg". Where there are none the names are recognised.
        num_frames: how many frames there must be, default as many as there are images.
        pattern: names that must be there, such as "img_{:05d}.jpg".

    Raises:
        VideoError: no such folder, no images, too few, or images of several kinds.
        InputError: a pattern that does not hold one frame number.
    """

    def __init__(
        self, path: Path, expected: str | None = None, num_frames: int | None = None, pattern: str | None = None
    ) -> None:
        self.path, self.fps = path, math.nan
        check_length(path, num_frames or 0)
        self._numbered = frame_names(path, expected, pattern)
        self._expected = pattern or expected
        count = len(self._numbered)
        if count < (num_frames or 0) and self._expected is None:
            raise VideoError(f"{path}: holds {count} images, {num_frames} were announced")
        self.num_frames = count if num_frames is None else num_frames
        self._numbers: Sequence[int] = list(self._numbered)
        if self.num_frames != count:
            # Some are left out or missing: the frames are those that follow the first without a gap.
            first = next((number for number in (0, 1) if number in self._numbered), 1)
            self._numbers = range(first, first + self.num_frames)

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        frames = [self._read_one(self._numbers[index]) for index in indices]
        if len({frame.shape for frame in frames}) > 1:
            raise VideoError(f"{self.path}: its images differ in size")
        return stack(frames)

    def _read_one(self, number: int) -> np.ndarray:
        name = self._numbered.get(number)
        if name is None and self._expected is not None:
            name = self._expected.format(number)
        if name is None:
            raise VideoError(f"{self.path}: no image of number {number}")
        return read_picture(self.path / name)


def frame_names(path: Path, expected: str | None = None, pattern: str | None = None) -> dict[int, str]:
    """The names of a folder's frames by ascending number; arguments and errors as for `FrameFolder`."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.is_dir()]
    except (OSError, ValueError):
        raise VideoError(f"{path}: no such folder of frames") from None
    for wanted in (pattern, expected):
        if wanted is not None and (found := _matching(path, names, wanted)):
            return found
    if pattern is not None:
        raise VideoError(f"{path}: holds no images named {pattern}")
    images = [name for name in names if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise VideoError(f"{path}: holds no images")
    return _by_number(path, _of_one_kind(path, images))


def check_pattern(pattern: str) -> str:
    """The pattern itself.

    Raises:
        InputError: it does not hold one frame number.
    """
    if _PATTERN.fullmatch(pattern) is None or "/" in pattern:
        raise InputError(f"{pattern!r} is no pattern of image names; write the number as in img_{{:05d}}.jpg")
    return pattern


def _matching(path: Path, names: list[str], pattern: str) -> dict[int, str]:
    found = _PATTERN.fullmatch(check_pattern(pattern))
    assert found is not None
    wanted = re.compile(rf"{re.escape(found[1])}\d+{re.escape(found[2])}")
    return _by_number(path, [name for name in names if wanted.fullmatch(name)])


def _of_one_kind(path: Path, names: list[str]) -> list[str]:
    """The images that are frames: those whose names differ in numbers only."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "#", Path(name).stem).lower(), []).append(name)
    if not any("#" in kind for kind in kinds):
        # Names without numbers have the order of words.
        kinds = {"": names} if len(kinds) > 1 else kinds
    frames = {kind: own for kind, own in kinds.items() if not _BESIDE.search(kind)} or kinds
    if len(frames) > 1 and _USUAL in frames:
        frames = {_USUAL: frames[_USUAL]}
    if len(frames) > 1:
        some = ", ".join(sorted(min(own) for own in list(frames.values())[:3]))
        raise VideoError(
            f"{path}: images of {len(frames)} kinds of names ({some}); choose one with the reader "
            "'frames:NAME', such as frames:img_{:05d}.jpg"
        )
    return next(iter(frames.values()))


def _by_number(path: Path, names: list[str]) -> dict[int, str]:
    """Names by the number in which they differ, by their rank where they differ in several."""
    numbered = sorted((tuple(int(digits) for digits in re.findall(r"\d+", Path(name).stem)), name) for name in names)
    for (numbers, name), (others, other) in zip(numbered, numbered[1:], strict=False):
        if numbers and numbers == others:
            raise VideoError(f"{path}: {name} and {other} are both the frame of one number")
    differing = [
        place
        for place, values in enumerate(zip(*(numbers for numbers, _ in numbered), strict=False))
        if len(set(values)) > 1
    ]
    if len(names) == 1 and numbered[0][0]:
        differing = [len(numbered[0][0]) - 1]
    if len(differing) == 1:
        return {numbers[differing[0]]: name for numbers, name in numbered}
    return {rank: name for rank, (_, name) in enumerate(numbered)}
