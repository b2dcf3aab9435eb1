"""How frames fit a box: all sizes are (height, width), in pixels."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[int, int]


def scaled(box: Pair, factor: float) -> Pair:
    """A box with both sides so many times as long, rounded."""
    return round(box[0] * factor), round(box[1] * factor)


def covering(extents: Sequence[int], box: Pair, down: bool = False) -> Pair:
    """The smallest size of frames that keep their aspect and cover a box.

    Args:
        extents: (height, width) of the frames.
        box: what they cover.
        down: round the side that is left over down, not to the nearest.
    """
    fit = _tightest(extents, box)
    found = list(box)
    if down:
        found[1 - fit] = extents[1 - fit] * box[fit] // extents[fit]
    else:
        found[1 - fit] = max(round(extents[1 - fit] * (box[fit] / extents[fit])), box[1 - fit])
    return found[0], found[1]


def largest_within(extents: Sequence[int], box: Pair) -> tuple[float, float]:
    """The largest size that has the aspect of a box and lies within frames.

    Args:
        extents: (height, width) of the frames.
        box: whose aspect it has.
    """
    fit = _tightest(extents, box)
    return box[0] * extents[fit] / box[fit], box[1] * extents[fit] / box[fit]


def _tightest(extents: Sequence[int], box: Pair) -> int:
    """The side of a box that frames fill first as they grow: 0 for the height, 1 for the width."""
    return 0 if extents[1] * box[0] >= extents[0] * box[1] else 1
