"""The rows of annotation lists: what a parser reads, what it gives, and the labelled videos that come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2clip.data.segment import Segment


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Where the stored frames of a video are.

    Args:
        shard: the tar file.
        key: what the names of the sample's members start with.
        offset: where in the shard the sample begins, in bytes.
        length: of the sample, in bytes.
        crc32: checksum of that stretch.
        every_frame: whether all frames of the video are stored, or only some, uniformly spread.
    """

    shard: Path
    key: str
    offset: int
    length: int
    crc32: int
    every_frame: bool


@dataclass(frozen=True, slots=True)
class VideoItem:
    """One labelled video.

    Args:
        path: video file or folder of images.
        label: class id from 0.
        num_frames: number of images of a frame folder that are its frames, None for all of them or for a video file.
        pattern: name of the images with the frame number from 1, e.g. "img_{:05d}.jpg"; None finds it out.
        sample: where its frames are stored, if it is read from a pack; `path` then is that of the packed video, below
            the folder that all videos of the pack had in common.
        segment: the part of the video that is meant, None for all of it. Two segments of a file are two items.
        cut_from: the video that the file is a part of, where a pack has made it one of its own.
    """

    path: Path
    label: int
    num_frames: int | None = None
    pattern: str | None = None
    sample: ShardSample | None = None
    segment: Segment | None = None
    cut_from: Path | None = None

    @property
    def source(self) -> Path | None:
        """The video that it is a part of, which other items may be parts of, too; None for a whole video."""
        return self.cut_from if self.segment is None else self.path

    @property
    def name(self) -> str:
        """What tells the item from the others of a list, for people: its path and, of a part, its seconds."""
        return str(self.path) if self.segment is None else f"{self.path} {self.segment}"


@dataclass(frozen=True, slots=True)
class Row:
    """One parsed line: `where` is "file, line N" for messages, the rest as in `VideoItem`."""

    where: str
    path: Path
    label: int
    num_frames: int | None = None
    sample: ShardSample | None = None
    segment: Segment | None = None
    cut_from: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What to parse: file or folder, root of relative paths, class names given by the caller, wanted split.

    Attributes:
        first_number: what the file of the class names gives its first class, 0 or 1.
    """

    path: Path
    root: Path
    class_names: list[str] | None
    split: str | None
    first_number: int = 0


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rows of a source and the class names they refer to (None: unknown).

    Attributes:
        left_out: what a folder holds besides, as in `m2clip.data.lists.class_folders.LeftOut.to_dict`.
    """

    rows: list[Row]
    class_names: list[str] | None
    left_out: dict[str, Any] = field(default_factory=dict)
