"""What a model says of a long video: when what happens."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from m2clip.files.disk import open_regular
from m2clip.prediction.segments import Segment, cells_of
from m2clip.terminal import printable

COLUMNS = ("path", "start", "end", "class", "score")


@dataclass(frozen=True, repr=False)
class Timeline:
    """The segments of a video; a notebook shows them with its frames.

    Attributes:
        path: the video.
        head: which scores these are: "supervised" (VC head) or "zero-shot" (text similarity).
        class_names: the C names that scores are over.
        duration: of the video, in seconds.
        windows: (W, 2) start and end of each window, in seconds.
        scores: (W, C) probabilities of each window.
        segments: in the order of time.
        frames: (n, 3, height, width) uint8, frames that are spread over the video, as the model saw them.
        frame_seconds: when these are shown.
    """

    path: str
    head: str
    class_names: list[str]
    duration: float
    windows: np.ndarray = field(compare=False)
    scores: np.ndarray = field(compare=False)
    segments: list[Segment]
    frames: Tensor = field(compare=False)
    frame_seconds: list[float]

    def rows(self) -> list[tuple[float, float, str, float]]:
        """(start, end, class name, score) of each segment, in seconds."""
        return [(one.start, one.end, self.class_names[one.label], one.score) for one in self.segments]

    def to_dict(self) -> dict[str, Any]:
        """The segments as JSON types."""
        segments = [
            {"start": round(start, 3), "end": round(end, 3), "name": name, "score": score}
            for start, end, name, score in self.rows()
        ]
        return {"path": self.path, "head": self.head, "duration": round(self.duration, 3), "segments": segments}

    def to_srt(self) -> str:
        """The segments as subtitles (SubRip), which players show over the video."""
        parts = [
            f"{number}\n{_srt_time(start)} --> {_srt_time(end)}\n{printable(name)} ({100 * score:.0f} %)\n"
            for number, (start, end, name, score) in enumerate(self.rows(), 1)
        ]
        return "\n".join(parts)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw frames, scores and segments over time as PNG; InputError where it cannot be written."""
        from m2clip.plots.timeline import timeline_picture

        return timeline_picture(self._drawn(), path)

    def _drawn(self) -> dict[str, Any]:
        return {
            "title": Path(self.path).name,
            "names": self.class_names,
            "cells": cells_of(self.windows, self.duration),
            "scores": self.scores,
            "segments": self.segments,
            "duration": self.duration,
            "frames": self.frames,
            "frame_seconds": self.frame_seconds,
        }

    def __repr__(self) -> str:
        heading = f"Timeline of {printable(self.path)} ({self.head}, {clock(self.duration)})"
        lines = [
            f"  {clock(start)} - {clock(end)}  {100 * score:6.2f} %  {printable(name)}"
            for start, end, name, score in self.rows()
        ]
        return "\n".join([heading, *(lines or ["  no segment"])])

    def _repr_html_(self) -> str:
        from m2clip.plots.notebook import table_html
        from m2clip.plots.timeline import timeline_png

        cells = [(clock(start), clock(end), name, f"{100 * score:.1f} %") for start, end, name, score in self.rows()]
        heading = f"{self.path} ({self.head})"
        return table_html(heading, timeline_png(self._drawn()), ("start", "end", "class", "score"), cells)


def segments_csv(timelines: Sequence[Timeline]) -> str:
    """The segments of videos as CSV, a row for each."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for timeline in timelines:
        for start, end, name, score in timeline.rows():
            writer.writerow((timeline.path, f"{start:.3f}", f"{end:.3f}", name, f"{score:.6f}"))
    return file.getvalue()


def is_csv(path: Path) -> bool:
    """Whether a file is what `segments_csv` makes."""
    return _first_bytes(path).startswith((",".join(COLUMNS) + "\n").encode())


def is_srt(path: Path) -> bool:
    """Whether a file is empty or begins as `Timeline.to_srt` does."""
    return re.match(rb"(\Z|1\n[\d:,]+ --> [\d:,]+\n.* \(\d+ %\)\n)", _first_bytes(path)) is not None


def _first_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(4096)
    except OSError:
        return b"?"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03.4, without hours where there are none."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def _srt_time(seconds: float) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3600000:02}:{whole // 60000 % 60:02}:{whole // 1000 % 60:02},{whole % 1000:03}"
