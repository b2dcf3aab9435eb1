"""Episodes of few-shot recognition: N classes, K support videos of each, and queries to be told apart by them.

An evaluation draws its episodes once and keeps them in a file, so that every model is asked the same questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2clip.data.lists.annotations import Annotations, VideoItem, list_hash
from m2clip.data.lists.text_files import read_lines
from m2clip.errors import InputError
from m2clip.files.disk import write_text

KIND, VERSION = "m2clip episodes", 1
_NAMED = 5  # classes that an error names


@dataclass(frozen=True)
class EpisodeShape:
    """How many videos an episode has.

    Args:
        way: classes, N, 2 or more.
        shots: support videos of a class, K, 1 or more.
        queries: query videos of a class, 1 or more.

    Raises:
        InputError: a number below its least.
    """

    way: int = 5
    shots: int = 1
    queries: int = 1

    def __post_init__(self) -> None:
        for name, least in (("way", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} of an episode must be {least} or more, not {getattr(self, name)}")

    @property
    def support(self) -> int:
        """Support videos of an episode."""
        return self.way * self.shots

    @property
    def videos(self) -> int:
        """Support and query videos of an episode."""
        return self.way * (self.shots + self.queries)


@dataclass(frozen=True)
class EpisodeList:
    """E episodes over the videos of one list; numbers of videos are positions in it.

    Attributes:
        shape: of every episode.
        seed: what they were drawn by.
        classes: (E, way) int64, labels of the classes.
        support: (E, way, shots) int64. query: (E, way, queries) int64.
        list_hash, list_length: identity of the list of videos.
    """

    shape: EpisodeShape
    seed: int
    classes: Tensor
    support: Tensor
    query: Tensor
    list_hash: str
    list_length: int

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def sha256(self) -> str:
        """First 16 hex digits of SHA-256 over the episodes as they stand in a file."""
        return _digest(self._lines())

    def share(self, rank: int, world_size: int) -> Tensor:
        """Numbers of the episodes of one process: every world_size-th from its rank on, (about E / world_size,)."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of 0 to {world_size - 1}, not {rank}")
        return torch.arange(len(self))[rank::world_size]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a header and one JSON line an episode, under a temporary name first; returns the path.

        Raises:
            InputError: the file cannot be written.
        """
        lines = self._lines()
        header = {
            "file": KIND,
            "version": VERSION,
            "seed": self.seed,
            "way": self.shape.way,
            "shots": self.shape.shots,
            "queries": self.shape.queries,
            "episodes": len(self),
            "videos": self.list_length,
            "videos_sha256": self.list_hash,
            "episodes_sha256": _digest(lines),
        }
        return write_text("\n".join([json.dumps(header), *lines]) + "\n", path)

    def _lines(self) -> list[str]:
        numbers = zip(self.classes.tolist(), self.support.tolist(), self.query.tolist(), strict=True)
        return [json.dumps({"classes": c, "support": s, "query": q}) for c, s, q in numbers]


def draw_episodes(annotations: Annotations, shape: EpisodeShape, count: int, seed: int = 0) -> EpisodeList:
    """Draw episodes: classes uniformly without replacement, and so the videos of each class.

    Episode i depends on the seed and on i alone, so that fewer episodes are the first of more, and no number of
    processes changes them. Of a list of parts, the parts that an episode has of a class are of different videos.

    Args:
        annotations: the videos.
        shape: of every episode.
        count: E, 1 or more.
        seed: of all draws.

    Raises:
        InputError: count below 1, fewer classes than `way`, or classes with too few videos, named.
    """
    if count < 1:
        raise InputError(f"the number of episodes must be 1 or more, not {count}")
    videos = class_videos(annotations, shape)
    drawn = [draw_episode(videos, shape, random.Random(f"{seed}/{number}")) for number in range(count)]
    numbers = torch.tensor([list(of_class.values()) for of_class in drawn])
    return EpisodeList(
        shape,
        seed,
        classes=torch.tensor([list(of_class) for of_class in drawn]),
        support=numbers[:, :, : shape.shots].clone(),
        query=numbers[:, :, shape.shots :].clone(),
        list_hash=list_hash(annotations.items),
        list_length=len(annotations.items),
    )


def sources(items: Sequence[VideoItem]) -> list[int]:
    """What file each item is of, by the position of the first item of it: parts of a file have one source."""
    first: dict[Path, int] = {}
    return [place if item.source is None else first.setdefault(item.source, place) for place, item in enumerate(items)]


def class_videos(annotations: Annotations, shape: EpisodeShape) -> dict[int, list[list[int]]]:
    """By label the videos of every class that has any, each as the positions of its parts, or as one position.

    Raises:
        InputError: fewer classes than `way`, or classes with too few videos, named.
    """
    names = annotations.class_names
    by_source: dict[int, dict[int, list[int]]] = {}
    for index, (item, source) in enumerate(zip(annotations.items, sources(annotations.items), strict=True)):
        by_source.setdefault(item.label, {}).setdefault(source, []).append(index)
    videos = {label: list(of_class.values()) for label, of_class in by_source.items()}
    if len(videos) < shape.way:
        raise InputError(
            f"{annotations.source}: has videos of {len(videos)} classes, "
            f"an episode of {shape.way} ways needs {shape.way}"
        )
    needed = shape.shots + shape.queries
    short = [label for label, of_class in sorted(videos.items()) if len(of_class) < needed]
    if short:
        named = ", ".join(
            f"{names[label] if names else label!r} ({len(videos[label])})" for label in short[:_NAMED]
        ) + (f" and {len(short) - _NAMED} more" if len(short) > _NAMED else "")
        raise InputError(
            f"{annotations.source}: classes with fewer than the {needed} videos of an episode ({shape.shots} support, "
            f"{shape.queries} query): {named}"
        )
    return dict(sorted(videos.items()))


def draw_episode(
    videos: Mapping[int, Sequence[Sequence[int]]],
    shape: EpisodeShape,
    rng: random.Random,
    spare_classes: int = 0,
    spare: int = 0,
) -> dict[int, list[int]]:
    """Draw one episode: by label, in random order, first the support and then the query videos of each class.

    Of a video of several parts one is drawn.

    Args:
        videos: the videos of every class (`class_videos`).
        shape: of the episode.
        rng: source of the draw.
        spare_classes: how many further classes to draw behind those of the episode, as far as there are any.
        spare: how many further videos of each class to draw, to stand in for videos that cannot be read.
    """
    labels = rng.sample(list(videos), min(shape.way + spare_classes, len(videos)))
    needed = shape.shots + shape.queries + spare
    drawn = {label: rng.sample(videos[label], min(needed, len(videos[label]))) for label in labels}
    return {
        label: [parts[0] if len(parts) == 1 else rng.choice(parts) for parts in of_class]
        for label, of_class in drawn.items()
    }


def load_episodes(path: str | os.PathLike[str], annotations: Annotations) -> EpisodeList:
    """Read episodes that were kept in a file.

    Args:
        path: a file that `EpisodeList.save` wrote.
        annotations: the list of videos they were drawn from.

    Raises:
        InputError: no such file, a file of another kind or version, a damaged or changed one, or episodes of another
            list of videos.
    """
    path = Path(path)
    lines = read_lines(path)
    header = _header(path, lines[0][1] if lines else "")
    shape = EpisodeShape(header["way"], header["shots"], header["queries"])
    own = list_hash(annotations.items)
    if (header["videos"], header["videos_sha256"]) != (len(annotations.items), own):
        raise InputError(
            f"{path}: these episodes are of a list of {header['videos']} videos (sha256 {header['videos_sha256']}), "
            f"not of {annotations.source} with {len(annotations.items)} (sha256 {own})"
        )
    if len(lines) - 1 != header["episodes"]:
        raise InputError(
            f"{path}: holds {len(lines) - 1} of its {header['episodes']} episodes; draw it again with seed "
            f"{header['seed']}"
        )
    labels, files = [item.label for item in annotations.items], sources(annotations.items)
    episodes = [_episode(f"{path}, line {number}", line, shape, labels, files) for number, line in lines[1:]]
    found = EpisodeList(
        shape,
        header["seed"],
        classes=torch.tensor([episode["classes"] for episode in episodes]),
        support=torch.tensor([episode["support"] for episode in episodes]),
        query=torch.tensor([episode["query"] for episode in episodes]),
        list_hash=own,
        list_length=len(annotations.items),
    )
    if found.sha256 != header["episodes_sha256"]:
        raise InputError(f"{path}: was changed after it was written; draw it again with seed {header['seed']}")
    return found


def _header(path: Path, line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("file") != KIND:
        raise InputError(f"{path}: is no list of episodes; m2clip episodes list writes one")
    if header.get("version") != VERSION:
        raise InputError(f"{path}: is a list of version {header.get('version')}, this program reads version {VERSION}")
    wanted = dict.fromkeys(("seed", "way", "shots", "queries", "episodes", "videos"), int)
    for name, kind in {**wanted, "videos_sha256": str, "episodes_sha256": str}.items():
        if type(header.get(name)) is not kind:
            raise InputError(f"{path}, line 1: {name} of the header is missing or is not what it should be")
    if header["episodes"] < 1:
        raise InputError(f"{path}, line 1: a list of {header['episodes']} episodes")
    return header


def _episode(where: str, line: str, shape: EpisodeShape, labels: Sequence[int], files: Sequence[int]) -> dict[str, Any]:
    """One line of the file, checked against the list of videos."""
    try:
        episode = json.loads(line)
        classes, support, query = (episode[name] for name in ("classes", "support", "query"))
        videos = [[*s, *q] for s, q in zip(support, query, strict=True)]
        fits = (
            len(classes) == len(videos) == shape.way
            and all(len(s) == shape.shots for s in support)
            and all(len(q) == shape.queries for q in query)
            and all(type(number) is int for number in (*classes, *(v for of_class in videos for v in of_class)))
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise InputError(f"{where}: is no episode of {shape.way} classes, {shape.shots} shots, {shape.queries} queries")
    if len(set(classes)) < len(classes):
        raise InputError(f"{where}: a class comes twice")
    for label, of_class in zip(classes, videos, strict=True):
        wrong = next((v for v in of_class if not 0 <= v < len(labels) or labels[v] != label), None)
        if wrong is not None:
            raise InputError(f"{where}: video {wrong} is none of class {label}")
        if len(set(of_class)) < len(of_class):
            raise InputError(f"{where}: a video of class {label} comes twice")
        if len({files[v] for v in of_class}) < len(of_class):
            raise InputError(f"{where}: two parts of one video are of class {label}; delete the file, and draw it anew")
    return {"classes": classes, "support": support, "query": query}


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
