"""Which videos of a list are held out of training: a share of each class, and no source video on both sides."""

from __future__ import annotations

import os
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from m2clip.data.lists.rows import VideoItem
from m2clip.errors import Notice


def hold_out(items: Sequence[VideoItem], share: float = 0.2, seed: int = 0) -> tuple[list[int], list[int]]:
    """Draw the videos to be held out.

    Items of one file, such as its segments, stay together. Of each class at least one item stays in training. Where
    every file stands once, the numbers are exactly those of `shares`; else as near to them as whole files allow.

    Args:
        items: the videos.
        share: of the items, above 0 and below 1.
        seed: of the draw.

    Returns:
        Positions of the items of training and of those held out, both in the order of the list; the latter are none
        where nothing can be spared.
    """
    rng = random.Random(f"{seed}/hold out")
    sources: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        sources.setdefault(os.path.realpath(item.source or item.path), []).append(place)
    left = Counter(item.label for item in items)
    wanted = shares(left, share, rng)
    waiting = [(places, Counter(items[place].label for place in places)) for places in sources.values()]
    rng.shuffle(waiting)
    held: set[int] = set()
    for fits in (_within, _nearer):
        for places, labels in waiting:
            if held.isdisjoint(places) and fits(labels, wanted) and _spared(labels, left):
                held.update(places)
                left -= labels
                wanted.subtract(labels)
    if not held:
        # Files of many segments are each too much: the shortest that training can spare.
        spared = sorted((places for places, labels in waiting if _spared(labels, left)), key=len)
        held.update(*spared[:1])
    return [place for place in range(len(items)) if place not in held], sorted(held)


def _within(labels: Counter[int], wanted: Counter[int]) -> bool:
    return all(count <= wanted[label] for label, count in labels.items())


def _nearer(labels: Counter[int], wanted: Counter[int]) -> bool:
    """Whether a file brings the numbers nearer to those wanted, although it is more than these."""
    return sum(abs(wanted[label] - count) - abs(wanted[label]) for label, count in labels.items()) < 0


def _spared(labels: Counter[int], left: Counter[int]) -> bool:
    """Whether every class keeps an item without a file."""
    return all(count < left[label] for label, count in labels.items())


def tell_in_both(train: Sequence[VideoItem], val: Sequence[VideoItem]) -> None:
    """Warn of videos that are trained on and scored by: files of one name, or parts of such, that are one file.

    Args:
        train: the videos of training.
        val: those that are to be scored.
    """
    files: list[dict[str, set[Path]]] = [{}, {}]
    for found, items in zip(files, (train, val), strict=True):
        for item in items:
            path = item.source or item.path
            found.setdefault(path.name, set()).add(path)
    # Only where names agree are files asked for, which takes long on a disk of a network.
    names = files[0].keys() & files[1].keys()
    real = ({os.path.realpath(path) for name in names for path in found[name]} for found in files)
    both = set.intersection(*real)
    if both:
        line = f"videos for training and for scoring: {len(both)} are in both lists, such as {min(both)}"
        warnings.warn(Notice(f"{line}; the score will be too good", in_both=len(both)), stacklevel=2)


def shares(counts: Counter[int], share: float, rng: random.Random) -> Counter[int]:
    """How many items of each class to hold out, by largest remainders.

    In all it is the share of all items to the nearest whole number, one at least; each class keeps one item.

    Args:
        counts: items of each class.
        share: of them.
        rng: decides between classes of equal remainders.
    """
    exact = {label: Fraction(share).limit_denominator(1000) * count for label, count in counts.items()}
    found = Counter({label: min(int(value), counts[label] - 1) for label, value in exact.items()})
    order = sorted(exact)
    rng.shuffle(order)
    order.sort(key=lambda label: int(exact[label]) - exact[label])  # stable: the largest remainder first
    missing = max(1, round(sum(exact.values()))) - found.total()
    for label in order:
        if missing > 0 and found[label] < counts[label] - 1:
            found[label] += 1
            missing -= 1
    return found
