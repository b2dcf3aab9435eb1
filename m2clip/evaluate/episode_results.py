"""What an evaluation by episodes found: accuracies with their intervals, failures, and how it was done."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2clip.evaluate.results import Failure
from m2clip.files.disk import write_json

INTERVAL = "mean +- 1.96 s / sqrt(E), s the sample standard deviation (E - 1) of the accuracies of the E episodes"
ON_ERROR_WORDS = {
    "raise": "none allowed",
    "skip": "as queries, their episodes left out; as support, another video of the class stands in",
    "wrong": "wrong as queries; as support, another video of the class stands in",
}


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy of episodes, between 0 and 1, and half of its 95 % interval (`INTERVAL`), None of one episode."""

    mean: float
    interval: float | None

    def __str__(self) -> str:
        """In per cent."""
        return f"{100 * self.mean:.2f}" + ("" if self.interval is None else f" ± {100 * self.interval:.2f}")


def accuracy(of_episodes: Tensor) -> Accuracy:
    """Mean and interval of the accuracies (E,) of single episodes."""
    values = of_episodes.double()
    interval = None if len(values) < 2 else 1.96 * float(values.std()) / math.sqrt(len(values))
    return Accuracy(float(values.mean()), interval)


@dataclass(frozen=True)
class EpisodeResult:
    """Accuracy over the episodes of one list.

    Attributes:
        name: what was evaluated, for tables.
        way, shots, queries: shape of the episodes.
        heads: accuracy by what the answer is read from, the model's own prediction first: "fused" (support videos and
            class texts together), "matching" (support videos alone), "text" (class texts alone).
        episodes: how many were asked; denominator: how many the accuracy is a mean of.
        seed, episodes_hash: of the list of episodes.
        failures: videos that could not be read, or gave no finite features.
        on_error: "raise", "skip" (episodes with such a query are left out) or "wrong" (such a query is an error).
        stand_ins: episodes in which another video of the class stands in for an unreadable support video
            (`m2clip.evaluate.episode_support`). Where no support video of a class can be read, its queries count as
            errors or, with "skip", leave the episode out, by all that reads support videos.
        not_finite: queries without finite scores, which count as errors or, with "skip", leave their episodes out.
        frames, normalisation, prompt: how frames were chosen and normalised and class names phrased; there is one clip
            of a video and one crop of it.
        classes, list_hash, list_length: number of classes in, and identity of, the list of videos.
    """

    name: str
    way: int
    shots: int
    queries: int
    heads: dict[str, Accuracy]
    episodes: int
    denominator: int
    seed: int
    episodes_hash: str
    failures: list[Failure]
    on_error: str
    stand_ins: int
    not_finite: int
    frames: str
    normalisation: str
    prompt: str
    classes: int
    list_hash: str
    list_length: int

    @property
    def main(self) -> Accuracy:
        """Accuracy of the model's own prediction."""
        return next(iter(self.heads.values()))

    def settings_line(self) -> str:
        """The protocol in one line, printed beside every number."""
        parts = [
            f"{self.way}-way {self.shots}-shot, {self.queries} {'query' if self.queries == 1 else 'queries'} a class",
            f"episodes: {self.episodes}, seed {self.seed}, sha256 {self.episodes_hash}",
            f"interval: {INTERVAL}",
            "views: 1 clip x 1 crop",
            f"frames: {self.frames}",
            f"normalisation: {self.normalisation}",
            f"prompt: {self.prompt!r}",
            f"list: {self.list_length} videos of {self.classes} classes, sha256 {self.list_hash}",
            f"failures: {len(self.failures)} ({ON_ERROR_WORDS[self.on_error]})",
            f"denominator: {self.denominator} episodes",
        ]
        if self.stand_ins:
            parts.append(f"episodes with another support video for an unreadable one: {self.stand_ins}")
        if self.not_finite:
            parts.append(f"queries without finite scores: {self.not_finite}")
        return " | ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {**asdict(self), "interval": INTERVAL, "views": "1 clip x 1 crop"}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON, under a temporary name first; returns the path."""
        return write_json(self.to_dict(), path)


def by_shots(results: Sequence[EpisodeResult]) -> tuple[list[int], list[tuple[str, str, dict[int, Accuracy]]]]:
    """The Ks, ascending, and a row (name, head, accuracy by K) for every model and head, in order of appearance."""
    rows: dict[tuple[str, str], dict[int, Accuracy]] = {}
    for result in results:
        for head, found in result.heads.items():
            rows.setdefault((result.name, head), {})[result.shots] = found
    return sorted({result.shots for result in results}), [(*key, found) for key, found in rows.items()]


def correct_shares(right: Tensor, lost: Tensor, bad_query: Tensor, on_error: str) -> tuple[Tensor, Tensor]:
    """Accuracies of episodes, and which of them count.

    Args:
        right: (..., E, Q) bool, whether a query was recognised.
        lost: (E,) bool, whether an episode has a class without a support video that can be read.
        bad_query: (E, Q) bool, whether a query could not be read or has no finite scores.
        on_error: "wrong" or "skip" (and "raise", where nothing is bad).

    Returns:
        (..., E) float64 and (E,) bool.
    """
    counts = torch.ones_like(lost) if on_error == "wrong" else ~lost & ~bad_query.any(dim=-1)
    return (right & ~bad_query).double().mean(dim=-1), counts
