"""A contact sheet of videos that were taken for another class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.plots.style import FAINT, INK, WRONG, draw_frames, figure, save, short
from m2clip.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

MOST = 20  # videos of a sheet
FRAMES = 6  # of a video
_COLUMNS = 2
_STRIP, _TEXT = 0.75, 0.62  # inches


@dataclass(frozen=True)
class Mistake:
    """One video of the sheet.

    Attributes:
        frames: (T, 3, H, W) uint8, up to `FRAMES`.
        name: of the video.
        true: name of its class.
        true_score: what the model gave this class, between 0 and 1.
        predicted: name of the class it was taken for.
        score: what the model gave that one.
    """

    frames: Tensor
    name: str
    true: str
    true_score: float
    predicted: str
    score: float


def contact_sheet(mistakes: Sequence[Mistake], path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw a strip of frames for each mistake, with both classes and their scores above it.

    Args:
        mistakes: up to `MOST` of them, in the order in which they are drawn: by rows.
        path: PNG to write.
        title: above the picture.
    """
    rows, columns = -(-len(mistakes) // _COLUMNS), min(_COLUMNS, len(mistakes))
    with figure(5.6 * columns, (_TEXT + _STRIP) * rows + 0.35) as drawn:
        drawn.suptitle(printable(title), x=0.008, ha="left", fontsize=11, fontweight="bold")
        # A row of words above each row of frames: the longest words then narrow no frames.
        grid = drawn.subplots(2 * rows, columns, squeeze=False, height_ratios=[_TEXT, _STRIP] * rows)
        for axes in grid.flat:
            axes.axis("off")
        for place, one in enumerate(mistakes):
            row, column = divmod(place, columns)
            _write(grid[2 * row, column], one)
            strip = grid[2 * row + 1, column]
            draw_frames(strip, one.frames, 1, len(one.frames))
            strip.set_anchor("NW")
        return save(drawn, path)


def _write(axes: Any, one: Mistake) -> None:
    """Both classes with their scores, and the name of the video."""
    lines = (
        (f"taken for {short(one.predicted, 46)}  {100 * one.score:.0f} %", 0.66, 9, WRONG),
        (f"is {short(one.true, 50)}  {100 * one.true_score:.0f} %", 0.31, 8.5, INK),
        (short(one.name, 64), 0.03, 7, FAINT),
    )
    for text, height, size, colour in lines:
        axes.text(0, height, text, fontsize=size, color=colour, transform=axes.transAxes, in_layout=False)
