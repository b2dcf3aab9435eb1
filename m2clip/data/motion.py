"""The built-in data set: short clips of moving shapes, written as real video files.

A class is a (shape, motion) pair such as "a circle moving left". No single frame tells the motion: the quantity that a
motion animates follows a random path, every other quantity rests at the value such a path takes at a random time, and
the reverse of a motion is the same clip played backwards. One third of the pairs is kept out as novel classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from m2clip.data.motion_render import SHAPES, SIZE, Pose, draw_looks, render
from m2clip.errors import InputError
from m2clip.files import replacing

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
FPS = 12
_FORMAT = 1
_CHUNK = 32


@dataclass(frozen=True)
class MotionClass:
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

    @property
    def slug(self) -> str:
        """Class name as a folder name."""
        return self.name.replace(" ", "_")


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


def write_clip(path: Path, clip: np.ndarray) -> None:
    """Write one clip as H.264 in mp4, 12 frames a second; the file appears only when complete.

    Args:
        path: file to write.
        clip: uint8 (T, H, W, 3) RGB with even H and W.
    """
    import av

    # Thousands of clips that can be rendered again need not outlive a power failure.
    with replacing(path, durable=False) as partial, av.open(str(partial), "w", format="mp4") as container:
        # Without the macroblock tree, whose result varied from run to run, one clip always gives the same file.
        options = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
    words = [seed, ("train", "val").index(split), CLASSES.index(motion_class), number]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _render_chunk(folder: str, seed: int, chunk: list[tuple[str, str, int]]) -> int:
    by_slug = {c.slug: c for c in CLASSES}
    for split, slug, number in chunk:
        clip = render_clip(by_slug[slug], clip_seed(seed, split, by_slug[slug], number))
        write_clip(Path(folder) / _clip_path(split, slug, number), clip)
    return len(chunk)


def _clip_path(split: str, slug: str, number: int) -> str:
    return f"videos/{split}/{slug}/{number:04d}.mp4"


def render_dataset(
    folder: str | os.PathLike,
    clips_per_class: dict[str, int],
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render the data set into a folder; clips that are already there are kept, so a stopped call can be repeated.

    Args:
        folder: where to write; created if needed. Clips go to videos/<split>/<class>/NNNN.mp4, the lists to
            base_train.txt, base_val.txt and novel_val.txt (one "path id" a line), the class names to base_classes.csv
            and novel_classes.csv (columns id, name).
        clips_per_class: {"train": clips of each base class, "val": clips of each base and each novel class}.
        seed: non-negative integer that fixes every clip.
        workers: number of processes; 0 or 1 renders in this process. With more, a script that calls this must do so
            under `if __name__ == "__main__":`, as for any new Python process.
        progress: called with (clips done, clips wanted) after every few clips.

    Returns:
        The folder.

    Raises:
        InputError: a count is missing or not positive, or the folder holds the data set of another seed.
    """
    counts = {split: clips_per_class.get(split, 0) for split in ("train", "val")}
    if set(clips_per_class) - set(counts) or min(counts.values()) < 1:
        raise InputError(
            f"clips_per_class must give a positive number for 'train' and for 'val', not {clips_per_class}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, seed)

    lists = {
        "base_train.txt": ("train", BASE_CLASSES),
        "base_val.txt": ("val", BASE_CLASSES),
        "novel_val.txt": ("val", NOVEL_CLASSES),
    }
    clips = []
    for name, (split, classes) in lists.items():
        of_list = [(split, c.slug, number) for c in classes for number in range(counts[split])]
        ids = {c.slug: c.id for c in classes}
        _write_text(folder / name, "".join(f"{_clip_path(*clip)} {ids[clip[1]]}\n" for clip in of_list))
        clips += of_list
        for c in classes:
            (folder / "videos" / split / c.slug).mkdir(parents=True, exist_ok=True)
    for name, classes in (("base_classes.csv", BASE_CLASSES), ("novel_classes.csv", NOVEL_CLASSES)):
        _write_text(folder / name, "id,name\n" + "".join(f"{c.id},{c.name}\n" for c in classes))

    missing = [clip for clip in clips if not (folder / _clip_path(*clip)).exists()]
    done = len(clips) - len(missing)
    report = progress or (lambda done, wanted: None)
    report(done, len(clips))
    chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
    if workers <= 1:
        for chunk in chunks:
            done += _render_chunk(str(folder), seed, chunk)
            report(done, len(clips))
        return folder
    import multiprocessing

    # A forked copy of a process that has used torch's threads can hang, so the workers start afresh.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_render_chunk, str(folder), seed, chunk) for chunk in chunks]):
            done += future.result()
            report(done, len(clips))
    return folder


def _claim(folder: Path, seed: int) -> None:
    """Keep clips of two seeds from mixing in one folder."""
    facts = {"format": _FORMAT, "seed": seed}
    path = folder / "motion.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != facts:
        raise InputError(f"{folder} holds a data set of another seed or version ({path}): choose another folder")
    _write_text(path, json.dumps(facts) + "\n")
