"""The built-in data set: short clips of moving shapes, written as real video files.

A class is a (shape, motion) pair such as "a circle moving left". No single frame tells the motion: the quantity that a
motion animates follows a random path, every other quantity rests at the value such a path takes at a random time, and
the reverse of a motion is the same clip played backwards. One third of the pairs is kept out as novel classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2clip.data.built_in.motion_render import SHAPES, SIZE, Pose, draw_looks, render
from m2clip.data.built_in.rendered_set import SPLITS, RenderedClass, RenderedSet
from m2clip.data.seeds import mix_seeds

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "spinning clockwise",
    "spinning counterclockwise",
    "fading in",
    "fading out",
)
QUANTITIES = ("x", "y", "radius", "angle", "alpha")
# Each motion as (animated quantity, played backwards).
_ANIMATES = {
    "moving left": ("x", True),
    "moving right": ("x", False),
    "moving up": ("y", True),
    "moving down": ("y", False),
    "growing": ("radius", False),
    "shrinking": ("radius", True),
    "spinning clockwise": ("angle", False),
    "spinning counterclockwise": ("angle", True),
    "fading in": ("alpha", False),
    "fading out": ("alpha", True),
}
FRAMES = (16, 24)


@dataclass(frozen=True)
class MotionClass(RenderedClass):
    """One class of the data set.

    Attributes:
        shape: a name of SHAPES.
        motion: a name of MOTIONS.
        base: True for a base class (trained on), False for a novel one.
        id: position within its own list (BASE_CLASSES or NOVEL_CLASSES).
    """

    shape: str
    motion: str
    base: bool
    id: int

    @property
    def name(self) -> str:
        """English class name, such as "a circle moving left"."""
        return f"a {self.shape} {self.motion}"


def _classes() -> tuple[MotionClass, ...]:
    # Along the diagonals every motion is novel for two of the six shapes and every shape for three or four motions.
    counts = {True: 0, False: 0}
    out = []
    for s, shape in enumerate(SHAPES):
        for m, motion in enumerate(MOTIONS):
            base = (s + m) % 3 != 0
            out.append(MotionClass(shape, motion, base, counts[base]))
            counts[base] += 1
    return tuple(out)


CLASSES = _classes()
BASE_CLASSES = tuple(c for c in CLASSES if c.base)
NOVEL_CLASSES = tuple(c for c in CLASSES if not c.base)


def draw_path(quantity: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw random linear paths of one quantity, in the forward direction (right, down, growing, clockwise, fading in).

    Args:
        quantity: a name of QUANTITIES.
        rng: source of randomness.
        n: number of paths.

    Returns:
        Start and end, each (n,): pixels, pixels, pixels, radians or opacity.
    """
    if quantity in ("x", "y"):
        length = rng.uniform(0.42 * SIZE, 0.58 * SIZE, n)
        start = 12.0 + rng.random(n) * (SIZE - 24.0 - length)
        return start, start + length
    if quantity == "radius":
        start = rng.uniform(9.0, 10.5, n)
        return start, start * rng.uniform(1.75, 2.0, n)
    if quantity == "angle":
        # At most 210 degrees in 7 steps: eight sampled frames turn 30 degrees each. Squares and crosses repeat after 90
        # degrees, so from 45 on their outline would seem to turn the other way.
        start = rng.uniform(0.0, 2 * np.pi, n)
        return start, start + np.deg2rad(rng.uniform(150.0, 210.0, n))
    return rng.uniform(0.35, 0.45, n), rng.uniform(0.9, 1.0, n)


def render_clip(motion_class: MotionClass, seed: int) -> np.ndarray:
    """Render one clip without encoding it.

    Two classes that differ only by a motion and its reverse give, with one seed, the same frames in reverse order.

    Args:
        motion_class: what to show.
        seed: non-negative integer that fixes the clip.

    Returns:
        uint8 (T, 64, 64, 3) RGB with T in 16..24.
    """
    animated, backwards = _ANIMATES[motion_class.motion]
    kind = SHAPES.index(motion_class.shape)
    rng = np.random.default_rng([seed, kind, QUANTITIES.index(animated)])
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    time = np.arange(frames) / (frames - 1)
    values = {}
    for quantity in QUANTITIES:
        start, end = draw_path(quantity, rng, 1)
        resting = time[rng.integers(frames)]
        values[quantity] = start + (end - start) * (time if quantity == animated else np.full(frames, resting))
    towards, speed = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.3, 1.2)
    steps = speed * np.arange(frames)
    pose = Pose(**values, drift_x=steps * np.cos(towards), drift_y=steps * np.sin(towards))
    clip = render(draw_looks(rng, np.array([kind])), pose)
    return np.ascontiguousarray(clip[::-1]) if backwards else clip


def clip_seed(seed: int, split: str, motion_class: MotionClass, number: int) -> int:
    """Seed of one clip of the data set, different for every split, class and clip number.

    Args:
        seed: seed of the data set.
        split: "train" or "val".
        motion_class: class of the clip.
        number: number of the clip within its class and split.

    Returns:
        A non-negative integer below 2**63.
    """
    return mix_seeds(seed, SPLITS.index(split), CLASSES.index(motion_class), number)


def draw_clip(motion_class: MotionClass, split: str, number: int, seed: int) -> np.ndarray:
    """One clip of the data set, uint8 (T, 64, 64, 3) RGB; arguments as in `clip_seed`."""
    return render_clip(motion_class, clip_seed(seed, split, motion_class, number))


DATA_SET = RenderedSet("motion", 1, BASE_CLASSES, NOVEL_CLASSES, draw_clip)
render_dataset = DATA_SET.render
