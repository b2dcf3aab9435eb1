"""What a job over a long list needs to know, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from torch import Tensor

from m2clip.choices import Precision
from m2clip.data.clips import ClipSettings
from m2clip.data.lists.rows import VideoItem
from m2clip.errors import InputError
from m2clip.evaluate.results import Failure

ON_ERROR = ("skip", "raise")


@dataclass(frozen=True)
class JobSettings:
    """How a list is cut up and worked off.

    Args:
        shard_size: videos of a part of the list, which is one file of the output.
        batch_size: views of a forward pass; it may be another one when a job resumes.
        precision: "fp32", "bf16" or "fp16"; on a GPU the frozen weights are kept in it, elsewhere it is autocast.
        on_error: "skip" lists a video that cannot be read with the reason, "raise" ends the job at the first one.
        retry_failed: try the videos again that could not be read before, as their files may be whole by now.

    Raises:
        InputError: a number below 1, or an unknown choice.
    """

    shard_size: int = 256
    batch_size: int = 16
    precision: str = "fp32"
    on_error: str = "skip"
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, choices in (("precision", get_args(Precision)), ("on_error", ON_ERROR)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}: use {', '.join(choices)}")


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        index: its position in the list.
        values: what the task computed, by name; empty where there is an error.
        error: why there are no values.
    """

    index: int
    values: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class TableRow:
    """A video in a finished file: its position in the list, its path, why it failed, and its cells of the table."""

    index: int
    path: str
    error: str | None
    cells: Sequence[str]


class Task(Protocol):
    """What is computed of a video, and how a part of the list is stored."""

    name: str
    table: str  # file name of the table of all videos

    @property
    def suffix(self) -> str:
        """Of a part's file."""

    def identity(self, model: Any) -> dict[str, Any]:
        """All beside weights and views that decides what is stored, as JSON values."""

    def compute(self, model: Any, video: Tensor, batch_size: int, precision: str) -> list[dict[str, Any]]:
        """The values of N videos (N, V, T, 3, H, W), of V views each."""

    def write(self, path: Path, items: Sequence[VideoItem], outcomes: Sequence[Outcome]) -> None:
        """Store the outcomes of a part of the list `items`, in order."""

    def read(self, path: Path) -> Iterator[TableRow]:
        """The videos in a file that `write` wrote; ValueError, KeyError or OSError where it is damaged."""

    def columns(self, model: Any) -> list[str]:
        """Names of a row's cells."""


@dataclass(frozen=True)
class Work:
    """A job: a task for every video of a list.

    Args:
        task: what is computed.
        model: a video model.
        items: the videos.
        views: how views of a video are drawn.
        settings: how the list is cut up.
    """

    task: Task
    model: Any
    items: Sequence[VideoItem]
    views: ClipSettings
    settings: JobSettings

    @property
    def num_parts(self) -> int:
        """Into how many parts the list is cut."""
        return -(-len(self.items) // self.settings.shard_size)

    def part(self, number: int) -> range:
        """The positions of a part's videos."""
        size = self.settings.shard_size
        return range(number * size, min((number + 1) * size, len(self.items)))


class Executor(Protocol):
    """What computes the parts of a job: `LocalProcess` or `RayCluster`."""

    @property
    def process(self) -> tuple[int, int]:
        """The number of this process, and how many there are that run the same call."""

    def take(self, missing: int) -> int:
        """How many of the missing parts it works on at a time."""

    def compute(self, work: Work, parts: Sequence[int]) -> Generator[tuple[int, list[Outcome]], None, None]:
        """A part and the outcomes of some of its videos, again and again until all parts are through."""


@dataclass(frozen=True)
class Summary:
    """A finished job.

    Attributes:
        task: "label" or "features".
        folder: where everything was written.
        table: the csv file that lists every video.
        videos: how many videos the list has.
        parts: files of the output, without folder.
        failures: the videos that have no result, and why.
    """

    task: str
    folder: str
    table: str
    videos: int
    parts: list[str]
    failures: list[Failure] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self)


def finite(values: dict[str, Any]) -> bool:
    """Whether all numbers of a video are."""
    return all(bool(np.isfinite(value).all()) for value in values.values() if isinstance(value, np.ndarray))
