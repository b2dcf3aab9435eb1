"""A picture of what happens when in a video."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.plots.style import INK, QUIET, STRONG, figure, save, short
from m2clip.terminal import printable

if TYPE_CHECKING:
    import numpy as np

ROWS = 12  # classes that are drawn


def timeline_picture(drawn: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw a timeline as PNG.

    Args:
        drawn: "title", "names" of the classes, "cells" (W, 2) start and end of what a window stands for, in seconds,
            "scores" (W, C), "segments" of (start, end, label, score), "duration", and "frames" (n, 3, H, W) uint8 with
            their "frame_seconds".
        path: PNG to write.
    """
    with _figure(drawn) as made:
        return save(made, path)


def timeline_png(drawn: dict[str, Any]) -> bytes:
    """The picture of `timeline_picture` as bytes."""
    with _figure(drawn) as made:
        file = io.BytesIO()
        made.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08)
        return file.getvalue()


@contextmanager
def _figure(drawn: dict[str, Any]) -> Iterator[Any]:
    labels = _shown(drawn["segments"], drawn["scores"])
    strip, row = 0.95, 0.42
    with figure(10.0, strip + row * len(labels) + 0.75) as made:
        axes = made.subplots(
            1 + len(labels), 1, sharex=True, squeeze=False, height_ratios=[strip, *[row] * len(labels)]
        )[:, 0]
        _draw_frames(axes[0], drawn)
        left_out = len({one[2] for one in drawn["segments"]} - set(labels))
        more = f" ({left_out} more classes not shown)" if left_out else ""
        axes[0].set_title(printable(drawn["title"]) + more)
        for place, label in zip(axes[1:], labels, strict=True):
            _draw_class(place, drawn, label)
        axes[-1].set_xlim(0, drawn["duration"])
        ticks = _ticks(drawn["duration"])
        axes[-1].set_xticks(ticks, [_clock(tick) for tick in ticks])
        axes[-1].tick_params(axis="x", labelbottom=True)
        yield made


def _shown(segments: Sequence[tuple[float, float, int, float]], scores: np.ndarray) -> list[int]:
    """The classes of which most is seen, in the order of their first segment; without any, the best class."""
    lengths: dict[int, float] = {}
    for start, end, label, _ in segments:
        lengths[label] = lengths.get(label, 0.0) + end - start
    longest = set(sorted(lengths, key=lambda label: -lengths[label])[:ROWS])
    return [label for label in lengths if label in longest] or [int(scores.mean(0).argmax())]


def _draw_class(axes: Any, drawn: dict[str, Any], label: int) -> None:
    """The score over time in grey; the segments as bars below it."""
    edges = [*drawn["cells"][:, 0], drawn["duration"]]
    axes.stairs(drawn["scores"][:, label], edges, fill=True, color=QUIET, alpha=0.55, linewidth=0)
    for start, end, number, _ in drawn["segments"]:
        if number == label:
            axes.axvspan(start, end, ymin=0, ymax=0.2, color=STRONG, linewidth=0)
    axes.set_ylim(-0.25, 1.0)
    axes.set_yticks([0.4], [short(drawn["names"][label], 32)], color=INK)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[["left"]].set_visible(False)
    axes.axhline(0, color="#eceff2", linewidth=0.8, zorder=0)
    axes.spines[["bottom"]].set_visible(False)


def _draw_frames(axes: Any, drawn: dict[str, Any]) -> None:
    """Frames at their times, above the classes."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    frames = drawn["frames"].permute(0, 2, 3, 1).cpu().numpy()
    for pixels, moment in zip(frames, drawn["frame_seconds"], strict=True):
        image = OffsetImage(pixels, zoom=44 / pixels.shape[0], interpolation="antialiased")
        axes.add_artist(AnnotationBbox(image, (moment, 0.5), frameon=False, pad=0))
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _ticks(duration: float) -> list[int]:
    """Round times of which a clock has few: at most ten."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)
    step = next((step for step in steps if duration / step < 10), 3600 * math.ceil(duration / 36000))
    return [step * number for number in range(int(duration // step) + 1)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
