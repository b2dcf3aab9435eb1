"""Two models on the same videos: whether their difference in accuracy is more than chance, and where it comes from."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m2clip.data.lists.label_sets import match_key
from m2clip.data.lists.text_files import read_text, shown
from m2clip.errors import InputError
from m2clip.files.kept_work import write_csv

RESAMPLES = 10_000
_NEEDED = ("path", "true", "predicted")
Key = tuple[str, str, str]


class Answered(NamedTuple):
    """One video's row in a table of predictions, with the classes as they are compared.

    Attributes:
        true: name of the class.
        predicted: name of the predicted class; empty without a prediction.
    """

    true: str
    predicted: str

    @property
    def right(self) -> bool:
        """Whether both are the same class."""
        return match_key(self.true) == match_key(self.predicted)


class Changed(NamedTuple):
    """A video that one model recognises and the other does not.

    Attributes:
        key: path, start and end of the video; the latter are empty where it is meant as a whole.
        true: name of its class.
        first: what the first model predicts.
        second: what the second model predicts.
        better: whether the second one is right.
    """

    key: Key
    true: str
    first: str
    second: str
    better: bool


@dataclass(frozen=True)
class ClassChange:
    """Accuracies of both models on the shared videos of a class, between 0 and 1."""

    name: str
    videos: int
    first: float
    second: float

    @property
    def difference(self) -> float:
        """Of the second model to the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """The second model against the first one, on the videos that both have a prediction of.

    Attributes:
        videos: how many these are.
        left_out: by reason how many others there are.
        first: accuracy of the first model on them, between 0 and 1.
        second: accuracy of the second model.
        interval: 95 % interval of the difference second - first: percentiles of the paired bootstrap.
        p_value: exact two-sided McNemar test of both models being right equally often.
        worse: videos that the first model alone recognises.
        better: videos that the second model alone recognises.
        classes: all classes of these videos, by the difference, largest gain first.
        changed: the videos of `worse` and `better`, in the order of the first table.
    """

    videos: int
    left_out: dict[str, int]
    first: float
    second: float
    interval: tuple[float, float]
    p_value: float
    worse: int
    better: int
    classes: list[ClassChange]
    changed: list[Changed]

    @property
    def difference(self) -> float:
        """Accuracy of the second model less that of the first."""
        return self.second - self.first

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        value = asdict(self) | {"difference": self.difference, "interval": list(self.interval), "resamples": RESAMPLES}
        value["changed"] = [
            {**dict(zip(("path", "start", "end"), one.key, strict=True)), **one._asdict()} for one in self.changed
        ]
        for one in value["changed"]:
            del one["key"]
        return value


def read_predictions(path: str | os.PathLike[str]) -> dict[Key, Answered]:
    """The rows of a table of predictions by path, start and end, in the order of the file.

    Raises:
        InputError: it cannot be read, is no such table, or has a video twice.
    """
    rows: dict[Key, Answered] = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(Path(path)), newline=""), strict=True)
        if missing := [name for name in _NEEDED if name not in (reader.fieldnames or ())]:
            raise InputError(f"{path}: no table of predictions: it has no column {missing[0]}")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {reader.line_num}: has other columns than the first line")
            key = os.path.abspath(row["path"]), row.get("start", ""), row.get("end", "")
            if key in rows:
                raise InputError(f"{path}, line {reader.line_num}: {shown(row['path'])} is there twice")
            rows[key] = Answered(row["true"], row["predicted"])
    except csv.Error as error:
        raise InputError(f"{path}: no table of predictions ({error})") from None
    return rows


def compare(first: dict[Key, Answered], second: dict[Key, Answered], seed: int = 0) -> Comparison:
    """Compare two models on the videos that both have a prediction of.

    Args:
        first: the rows of one (`read_predictions`).
        second: those of the other.
        seed: of the bootstrap.

    Raises:
        InputError: there is no such video, or all have another true class in the other table.
    """
    shared = [key for key in first if key in second]
    answered = [key for key in shared if first[key].predicted and second[key].predicted]
    keys = [key for key in answered if match_key(first[key].true) == match_key(second[key].true)]
    left_out = {
        "in the first alone": len(first) - len(shared),
        "in the second alone": len(second) - len(shared),
        "without a prediction": len(shared) - len(answered),
        "of another true class": len(answered) - len(keys),
    }
    if not keys:
        raise InputError(_nothing_shared(first, second, shared, answered))
    right = np.array([[rows[key].right for key in keys] for rows in (first, second)])
    worse, better = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    changed = [
        Changed(key, first[key].true, first[key].predicted, second[key].predicted, bool(right[1, place]))
        for place, key in enumerate(keys)
        if right[0, place] != right[1, place]
    ]
    return Comparison(
        videos=len(keys),
        left_out={reason: count for reason, count in left_out.items() if count},
        first=float(right[0].mean()),
        second=float(right[1].mean()),
        interval=bootstrap_interval(worse, better, len(keys), seed),
        p_value=mcnemar(worse, better),
        worse=worse,
        better=better,
        classes=_by_class([first[key].true for key in keys], right),
        changed=changed,
    )


def _nothing_shared(
    first: dict[Key, Answered], second: dict[Key, Answered], shared: Sequence[Key], answered: Sequence[Key]
) -> str:
    if answered:
        one = answered[0]
        return (
            f"none of the {len(answered)} shared videos has the same class in both, such as {shown(one[0])}: "
            f"{shown(first[one].true)} and {shown(second[one].true)}; compare runs with the same classes"
        )
    if shared:
        return f"none of the {len(shared)} shared videos has a prediction in both"
    examples = [shown(" ".join(filter(None, next(iter(rows))))) for rows in (first, second) if rows]
    return (
        f"no video is in both, of {len(first)} and {len(second)} videos"
        f" (the first: {' and '.join(examples) or 'none'}): score both runs on one list"
    )


def bootstrap_interval(worse: int, better: int, videos: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a difference in accuracy, by `RESAMPLES` paired resamples of the videos.

    A video adds -1, 0 or 1, so a resample is drawn as how many there are of each: the same distribution as drawing the
    videos one by one.

    Args:
        worse: videos that the first model alone recognises.
        better: videos that the second model alone recognises.
        videos: all videos.
        seed: of the draw.
    """
    shares = np.array([worse, better, videos - worse - better]) / videos
    counts = np.random.default_rng(seed).multinomial(videos, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 1] - counts[:, 0]) / videos, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p value of McNemar's test: of a fair coin for each video that changed.

    Args:
        worse: videos that the first model alone recognises.
        better: videos that the second model alone recognises.
    """
    changed = worse + better
    tail, term = 0, 1
    for number in range(min(worse, better) + 1):
        tail += term
        term = term * (changed - number) // (number + 1)
    return min(1.0, 2 * tail / (1 << changed))


def _by_class(true: Sequence[str], right: np.ndarray) -> list[ClassChange]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(true):
        places.setdefault(name, []).append(place)
    found = []
    for name, of_class in places.items():
        one, other = right[:, of_class].mean(axis=1)
        found.append(ClassChange(name, len(of_class), float(one), float(other)))
    return sorted(found, key=lambda one: (-one.difference, -one.videos, one.name))


def write_changed(found: Comparison, path: Path) -> Path:
    """Write the videos that changed as csv: path, start, end, true, first, second, change."""
    rows = [
        [*one.key, one.true, one.first, one.second, "wrong->right" if one.better else "right->wrong"]
        for one in found.changed
    ]
    return write_csv([["path", "start", "end", "true", "first", "second", "change"], *rows], path)
