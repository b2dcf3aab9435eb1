"""What an evaluation found: accuracies, confusion, failures, and the protocol that the numbers belong to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

from m2clip.choices import OnError
from m2clip.files.disk import write_json

ON_ERROR = get_args(OnError)
HEADS = ("supervised", "zero-shot")
BEST = 5  # classes of an answer


class Answer(NamedTuple):
    """What a head says of a video.

    Attributes:
        best: the most probable classes and their scores, best first, `BEST` of them or all.
        place: of the true class among all classes, counted from 0.
        true_score: score of the true class.
    """

    best: tuple[tuple[int, float], ...]
    place: int
    true_score: float

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return self.best[0][0]

    @property
    def score(self) -> float:
        """Its score."""
        return self.best[0][1]


@dataclass(frozen=True)
class VideoScore:
    """One video's outcome.

    Attributes:
        index: of the video in its list.
        label: its true class.
        answers: by head what it says; empty where there is an error.
        error: why there is no answer.
    """

    index: int
    label: int
    answers: dict[str, Answer]
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """A video that could not be scored."""

    index: int
    path: str
    error: str

    def describe(self) -> str:
        """Path and error in one line; readers' errors name the path themselves."""
        return self.error if self.path in self.error else f"{self.path}: {self.error}"


@dataclass(frozen=True)
class HeadScores:
    """Accuracies of one head, all between 0 and 1.

    Attributes:
        top1: share of videos whose most probable class is the true one.
        top5: share with the true class among the five most probable; None with fewer than five classes.
        per_class: top-1 of each class, None for a class without videos.
        confusion: (C, C) counts, rows true and columns predicted classes.
        unreadable: (C,) counted videos of each class without a prediction: they could not be read, or gave no finite
            scores. A row of `confusion` and this number add up to the videos of a class, so that the diagonal over all
            of them is `top1`.
    """

    top1: float
    top5: float | None
    per_class: list[float | None]
    confusion: list[list[int]]
    unreadable: list[int]

    @property
    def mean_class(self) -> float:
        """Mean of `per_class` over the classes with videos: each class counts the same, however many it has."""
        return fmean(right for right in self.per_class if right is not None)

    @property
    def empty_classes(self) -> int:
        """How many classes have no video, and are no part of `mean_class`."""
        return self.per_class.count(None)


@dataclass(frozen=True)
class EvalResult:
    """Scores of the VC head (`supervised`) and of text similarity (`zero_shot`), None where absent, and their protocol.

    Attributes:
        class_names: names of the classes, in the order of their numbers.
        denominator: videos that the accuracies are shares of: the whole list, less failures where those are skipped.
        failures: videos that could not be scored.
        on_error: "raise", "skip" or "wrong" (a failure counts as an error).
        clips, crops: views of a video.
        frames: how many frames a clip has and how they are sampled.
        fusion, normalisation, prompt: how views were joined, frames normalised and class names phrased.
        list_hash, list_length: identity of the list of videos.
        name: what was evaluated, for tables.
        videos: what was found of each video, in the order of the list.
    """

    class_names: list[str]
    supervised: HeadScores | None
    zero_shot: HeadScores | None
    denominator: int
    failures: list[Failure]
    on_error: str
    clips: int
    crops: int | str
    frames: str
    fusion: str
    normalisation: str
    prompt: str
    list_hash: str
    list_length: int
    name: str = "model"
    adapters_off: list[str] = field(default_factory=list)
    videos: list[VideoScore] = field(default_factory=list)

    @property
    def heads(self) -> dict[str, HeadScores]:
        """The heads that were scored, supervised first."""
        both = {"supervised": self.supervised, "zero-shot": self.zero_shot}
        return {head: scores for head, scores in both.items() if scores is not None}

    @property
    def main(self) -> HeadScores:
        """The head that predictions are read from: supervised where it exists, else zero-shot."""
        return next(iter(self.heads.values()))

    @property
    def main_head(self) -> str:
        """The name of the main head."""
        return next(iter(self.heads))

    @property
    def top1(self) -> float:
        """Top-1 of the main head."""
        return self.main.top1

    @property
    def top5(self) -> float | None:
        """Top-5 of the main head; None with fewer than five classes."""
        return self.main.top5

    def settings_line(self) -> str:
        """The protocol in one line, printed beside every number."""
        crops = self.crops if isinstance(self.crops, str) else f"{self.crops} crop{'s' if self.crops != 1 else ''}"
        parts = [
            f"views: {self.clips} clip{'s' if self.clips != 1 else ''} x {crops}",
            f"frames: {self.frames}",
            f"fusion: {self.fusion}",
            f"normalisation: {self.normalisation}",
            f"prompt: {self.prompt!r}",
            f"list: {self.list_length} videos, sha256 {self.list_hash}",
            f"failures: {len(self.failures)} ({_ON_ERROR_WORDS[self.on_error]})",
            f"denominator: {self.denominator}",
        ]
        if self.adapters_off:
            parts.append(f"adapters off: {', '.join(self.adapters_off)}")
        return " | ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything but `videos` as JSON types, with the mean class accuracy of each head."""
        value = asdict(replace(self, videos=[]))
        del value["videos"]
        for field_name, scores in (("supervised", self.supervised), ("zero_shot", self.zero_shot)):
            if scores is not None:
                value[field_name] |= {"mean_class": scores.mean_class, "empty_classes": scores.empty_classes}
        return value

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON, under a temporary name first; returns the path."""
        return write_json(self.to_dict(), path)


_ON_ERROR_WORDS = {"raise": "none allowed", "skip": "left out", "wrong": "counted as errors"}


def head_scores(scores: Sequence[VideoScore], head: str, num_classes: int, on_error: str) -> HeadScores:
    """Accuracies of one head over all videos.

    Args:
        scores: one entry a video.
        head: "supervised" or "zero-shot".
        num_classes: C.
        on_error: "wrong" keeps failed videos in the denominators, "skip" leaves them out.
    """
    import torch

    counted = [score for score in scores if on_error == "wrong" or score.error is None]
    answered = [score for score in counted if head in score.answers]
    total = len(counted)
    places = [score.answers[head].place for score in answered]
    labels = torch.tensor([score.label for score in answered], dtype=torch.int64)
    predicted = torch.tensor([score.answers[head].predicted for score in answered], dtype=torch.int64)
    confusion = (labels * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)
    videos = torch.tensor([score.label for score in counted], dtype=torch.int64).bincount(minlength=num_classes)
    per_class = [
        int(confusion[number, number]) / int(videos[number]) if videos[number] else None
        for number in range(num_classes)
    ]
    return HeadScores(
        top1=sum(place == 0 for place in places) / total,
        top5=sum(place < 5 for place in places) / total if num_classes >= 5 else None,
        per_class=per_class,
        confusion=confusion.tolist(),
        unreadable=(videos - confusion.sum(dim=1)).tolist(),
    )
