"""What an evaluation found, as tables for people and spreadsheets: a row for each video, or for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m2clip.data.lists.rows import VideoItem
from m2clip.data.segment import seconds_text
from m2clip.evaluate.results import BEST, EvalResult, HeadScores, VideoScore
from m2clip.files.kept_work import write_csv

PREDICTIONS = "predictions.csv"  # what the names of tables of predictions end with
VALIDATION = f"val_{PREDICTIONS}"  # of a run, for the weights that it offers


class ClassScore(NamedTuple):
    """What was found of the videos of one class.

    Attributes:
        name: of the class.
        videos: how many count.
        right: how many were recognised.
        unreadable: how many have no prediction.
        confused_with: the class that most of the others were taken for; None where none was.
        confused: how many were.
    """

    name: str
    videos: int
    right: int
    unreadable: int
    confused_with: str | None
    confused: int

    @property
    def accuracy(self) -> float | None:
        """Between 0 and 1; None without a video."""
        return self.right / self.videos if self.videos else None


def class_scores(scores: HeadScores, names: Sequence[str]) -> list[ClassScore]:
    """All classes, the worst first, of equally good ones that with more videos; those without a video come last."""
    found = []
    for label, (row, unreadable) in enumerate(zip(scores.confusion, scores.unreadable, strict=True)):
        wrong = [0 if place == label else count for place, count in enumerate(row)]
        most = max(wrong)
        other = names[wrong.index(most)] if most else None
        found.append(ClassScore(names[label], sum(row) + unreadable, row[label], unreadable, other, most))
    return sorted(found, key=lambda one: (one.videos == 0, one.accuracy or 0.0, -one.videos, one.name))


def write_classes(result: EvalResult, path: Path) -> Path:
    """Write the classes as csv, in the order of `class_scores`, of the head that predictions are read from."""
    header = ["class", "videos", "right", "accuracy", "unreadable", "most_confused_with", "times"]
    rows = [
        [one.name, one.videos, one.right, _number(one.accuracy), one.unreadable, one.confused_with or "", one.confused]
        for one in class_scores(result.main, result.class_names)
    ]
    return write_csv([header, *rows], path)


def write_predictions(result: EvalResult, items: Sequence[VideoItem], path: Path, head: str | None = None) -> Path:
    """Write a row for each video of the list as csv (RFC 4180, UTF-8), in the order of the list.

    Columns: path; start and end in seconds, where the list is of parts of videos; true and predicted class; score and
    true_score, of these two; correct, 1 or 0; top1, top1_score, ... of the five best classes; error, why there is no
    prediction. A video without one has correct 0 where failures count as errors, and nothing where they are left out.

    Args:
        result: what was found.
        items: the videos of its list.
        path: the file.
        head: whose predictions; None for the main head's.
    """
    segments = any(item.segment is not None for item in items)
    shown = min(BEST, len(result.class_names))
    header = ["path", *(["start", "end"] if segments else []), "true", "predicted", "score", "true_score", "correct"]
    header += [name for place in range(1, shown + 1) for name in (f"top{place}", f"top{place}_score")]
    rows = [header + ["error"]]
    for video in result.videos:
        item = items[video.index]
        where = [str(item.path)]
        if segments:
            where += ["", ""] if item.segment is None else map(seconds_text, item.segment)
        rows.append([*where, *_prediction(video, result, head or result.main_head, shown), video.error or ""])
    return write_csv(rows, path)


def _prediction(video: VideoScore, result: EvalResult, head: str, shown: int) -> list[Any]:
    names = result.class_names
    answer = video.answers.get(head)
    if answer is None:
        counted = "0" if result.on_error == "wrong" else ""
        return [names[video.label], "", "", "", counted, *[""] * 2 * shown]
    best = [cell for label, score in answer.best for cell in (names[label], _number(score))]
    facts = [names[answer.predicted], _number(answer.score), _number(answer.true_score)]
    return [names[video.label], *facts, int(answer.predicted == video.label), *best]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def confident_mistakes(result: EvalResult) -> list[VideoScore]:
    """The videos that were taken for another class, the highest scores first."""
    head = result.main_head
    wrong = [video for video in result.videos if head in video.answers and video.answers[head].place > 0]
    return sorted(wrong, key=lambda video: (-video.answers[head].score, video.index))
