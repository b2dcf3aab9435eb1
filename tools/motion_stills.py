"""Captioned stills of the built-in data set's shapes: what the tiny CLIP is pre-trained on.

A still has the distribution of a random frame of a random clip. Captions name what one image shows (shape, place, size,
faintness, direction of the dot) and never a motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2clip.data.built_in.motion import CLASSES, QUANTITIES, draw_path
from m2clip.data.built_in.motion_render import SHAPES, SIZE, Pose, draw_looks, render

PLACES = (
    "at the upper left",
    "at the top",
    "at the upper right",
    "at the left",
    "in the middle",
    "at the right",
    "at the lower left",
    "at the bottom",
    "at the lower right",
)
SIZES = ("small", "medium", "big")
OPACITIES = ("faint", "pale", "bright")
DIRECTIONS = ("east", "southeast", "south", "southwest", "west", "northwest", "north", "northeast")
OPENINGS = ("a photo of a", "a picture of a", "a video of a", "a")
# Columns of the attribute arrays; -1 in a caption's row means that the caption does not say.
ATTRIBUTES = ("shape", "place", "size", "opacity", "direction")
_TOLD = np.array([0.9, 0.4, 0.35, 0.3, 0.45])
_PLAIN = 0.25
_AT_ONCE = 32


@dataclass
class Stills:
    """A batch of images and what they show.

    Attributes:
        images: uint8 (n, 64, 64, 3) RGB.
        attributes: int64 (n, 5), the value of each of ATTRIBUTES.
    """

    images: np.ndarray
    attributes: np.ndarray


def held_out(attributes: np.ndarray) -> np.ndarray:
    """Mark the one in nine (shape, place, size) compositions that pre-training never shows.

    Args:
        attributes: int (n, 5), the value of each of ATTRIBUTES.

    Returns:
        bool (n,).
    """
    shape, place, size = attributes[:, :3].T
    return (shape + place + 3 * size) % 9 == 0


def draw_stills(rng: np.random.Generator, n: int, unseen: bool | None = None) -> Stills:
    """Draw n random stills.

    Args:
        rng: source of randomness.
        n: number of stills.
        unseen: None for all compositions, True for the held-out ones only, False for all the others.

    Returns:
        The stills.
    """
    drawn = n if unseen is None else 16 * n if unseen else 2 * n + 16
    kind = rng.integers(len(SHAPES), size=drawn)
    values = {}
    for quantity in QUANTITIES:
        start, end = draw_path(quantity, rng, drawn)
        values[quantity] = start + (end - start) * rng.random(drawn)
    attributes = _describe(kind, values)
    if unseen is not None:
        keep = np.flatnonzero(held_out(attributes) == unseen)[:n]
        if len(keep) < n:
            return draw_stills(rng, n, unseen)
        kind, attributes, values = kind[keep], attributes[keep], {k: v[keep] for k, v in values.items()}
    still = np.zeros(n)
    images = []
    # Small pieces stay in the processor's cache.
    for i in range(0, n, _AT_ONCE):
        part = slice(i, i + _AT_ONCE)
        pose = Pose(**{k: v[part] for k, v in values.items()}, drift_x=still[part], drift_y=still[part])
        images.append(render(draw_looks(rng, kind[part]), pose))
    return Stills(np.concatenate(images), attributes)


def _describe(kind: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    third = np.array([0.5 * SIZE - 5.5, 0.5 * SIZE + 5.5])
    column, row = np.digitize(values["x"], third), np.digitize(values["y"], third)
    size = np.digitize(values["radius"], [11.8, 15.2])
    opacity = np.digitize(values["alpha"], [0.57, 0.79])
    direction = np.round(values["angle"] / (2 * np.pi / 8)).astype(np.int64) % 8
    return np.stack([kind, 3 * row + column, size, opacity, direction], axis=1).astype(np.int64)


def draw_captions(rng: np.random.Generator, attributes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Write one random true caption for each row of attributes.

    Args:
        rng: source of randomness.
        attributes: int (n, 5), the value of each of ATTRIBUTES.

    Returns:
        n captions, and int64 (n, 5) with what each caption says (-1 where it says nothing).
    """
    n = len(attributes)
    told = rng.random(attributes.shape) < _TOLD
    plain = rng.random(n) < _PLAIN
    told[plain] = np.array([True, False, False, False, False])
    told[~told.any(axis=1), 0] = True
    says = np.where(told, attributes, -1)
    openings = rng.integers(len(OPENINGS), size=n)
    return [write_caption(OPENINGS[o], row) for o, row in zip(openings, says, strict=True)], says


def write_caption(opening: str, says: np.ndarray) -> str:
    """Write the caption that says what a row of attributes says.

    Args:
        opening: one of OPENINGS.
        says: int (5,), the value of each of ATTRIBUTES or -1.

    Returns:
        A caption such as "a photo of a small faint star at the top pointing east".
    """
    shape, place, size, opacity, direction = says
    words = [opening]
    words += [SIZES[size]] if size >= 0 else []
    words += [OPACITIES[opacity]] if opacity >= 0 else []
    words += [SHAPES[shape] if shape >= 0 else "shape"]
    words += [PLACES[place]] if place >= 0 else []
    words += [f"pointing {DIRECTIONS[direction]}"] if direction >= 0 else []
    return " ".join(words)


def vocabulary() -> list[str]:
    """Every phrase that a caption or a class name is made of.

    Returns:
        Phrases; the tokens of all captions and class names are among the tokens of these.
    """
    pointing = [f"pointing {d}" for d in DIRECTIONS]
    names = [c.name for c in CLASSES]
    return [*OPENINGS, *SHAPES, "shape", *PLACES, *SIZES, *OPACITIES, *pointing, *names]
