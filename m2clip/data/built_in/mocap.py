"""The second built-in data set: people of real motion captures in short rendered clips, written as video files.

Fifteen recorded actions make thirty classes: each action as it was recorded, and its reverse, which is the recording
played backwards (getting up becomes lying down). Half of the clips show the mirror image, so that a class and its
reverse have the same single frames: only the order tells them apart. Five actions with both their directions are kept
out as novel classes; their relatives and all words for directions are among the base classes.

There is one recording of each action, so no person or performance is held out: training and validation clips differ in
the directions of the camera and in the speed, and in colours and backgrounds as any two clips do. Accuracies here say
whether an action is seen from new sides at new speeds, not whether it is recognised in new people.

Needs the pybullet package: pip install 'm2clip[mocap]'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2clip.data.built_in.mocap_render import Camera, load_recording, render_person
from m2clip.data.built_in.rendered_set import SPLITS, RenderedClass, RenderedSet
from m2clip.data.seeds import mix_seeds


@dataclass(frozen=True)
class Action:
    """One recorded action.

    Attributes:
        recording: its name in pybullet_data.
        names: class names of the recording and of its reverse.
        base: whether its classes are trained on.
        cyclic: whether it may begin anew after its end.
        sided: whether the names tell left from right. A mirror image then belongs to the other class, and is played
            backwards to belong to this one again.
    """

    recording: str
    names: tuple[str, str]
    base: bool = True
    cyclic: bool = False
    sided: bool = False


ACTIONS = (
    Action("walk", ("walking forwards", "walking backwards"), cyclic=True),
    Action("jump", ("jumping forwards", "jumping backwards")),
    Action("crawl", ("crawling forwards", "crawling backwards")),
    Action("backflip", ("doing a backflip", "doing a front flip")),
    Action("cartwheel", ("turning a cartwheel to the left", "turning a cartwheel to the right"), sided=True),
    Action("spin", ("jumping with a spin to the left", "jumping with a spin to the right"), sided=True),
    Action("dance_b", ("dancing on the spot", "dancing on the spot backwards")),
    Action("getup_facedown", ("getting up from the belly", "lying down on the belly")),
    Action("kick", ("stepping forwards into a kick", "stepping backwards out of a kick")),
    Action("punch", ("stepping forwards into a punch", "stepping backwards out of a punch")),
    Action("run", ("running forwards", "running backwards"), base=False, cyclic=True),
    Action("roll", ("rolling forwards", "rolling backwards"), base=False),
    Action("dance_a", ("dancing with a turn to the right", "dancing with a turn to the left"), base=False, sided=True),
    Action("getup_faceup", ("getting up from the back", "lying down on the back"), base=False),
    Action("spinkick", ("doing a spin kick to the left", "doing a spin kick to the right"), base=False, sided=True),
)
FRAMES = (16, 24)
# Cameras stand in every third of these sectors of the half circle for validation, in the others for training: left and
# right are folded onto each other, because a mirror image shows the person from the other side.
SECTORS = 9
# The share of the recording that a clip plays.
SPEEDS = {"train": ((0.68, 0.78), (0.88, 0.98)), "val": ((0.79, 0.87),)}


@dataclass(frozen=True)
class MocapClass(RenderedClass):
    """One class of the data set.

    Attributes:
        action: what was recorded.
        reverse: True for the recording played backwards.
        id: position within its own list (BASE_CLASSES or NOVEL_CLASSES).
    """

    action: Action
    reverse: bool
    id: int

    @property
    def base(self) -> bool:
        """True for a base class (trained on), False for a novel one."""
        return self.action.base

    @property
    def name(self) -> str:
        """English class name, such as "a person walking backwards"; left and right are the person's own."""
        return f"a person {self.action.names[self.reverse]}"


def _classes(base: bool) -> tuple[MocapClass, ...]:
    pairs = [(action, reverse) for action in ACTIONS if action.base == base for reverse in (False, True)]
    return tuple(MocapClass(action, reverse, number) for number, (action, reverse) in enumerate(pairs))


BASE_CLASSES, NOVEL_CLASSES = _classes(True), _classes(False)
CLASSES = BASE_CLASSES + NOVEL_CLASSES


def draw_camera(split: str, rng: np.random.Generator) -> Camera:
    """A random camera of a split, "train" or "val"."""
    sectors = [k for k in range(SECTORS) if (k % 3 == 1) == (split == "val")]
    azimuth = (rng.choice(sectors) + rng.random()) * np.pi / SECTORS
    return Camera(
        azimuth=float(azimuth * rng.choice([-1, 1])),
        elevation=float(rng.uniform(0.0, 0.5)),
        distance=float(rng.uniform(2.8, 3.5)),
        follow=float(rng.uniform(0.5, 1.0)),
    )


def draw_shares(split: str, frames: int, cyclic: bool, rng: np.random.Generator) -> np.ndarray:
    """Which moments of a recording a clip shows.

    Args:
        split: "train" or "val".
        frames: T.
        cyclic: whether the clip may run over the recording's end.
        rng: source of the random speed and phase.

    Returns:
        (T,) equally spaced, 0 for the recording's beginning and 1 for its end.
    """
    bands = SPEEDS[split]
    played = rng.uniform(*bands[rng.integers(len(bands))])
    start = rng.uniform(0.0, 1.0 if cyclic else 1.0 - played)
    return start + played * np.arange(frames) / (frames - 1)


def render_clip(mocap_class: MocapClass, split: str, seed: int) -> np.ndarray:
    """Render one clip without encoding it.

    A class and its reverse give, with one seed, the same frames in reverse order.

    Args:
        mocap_class: what to show.
        split: "train" or "val": which cameras and speeds.
        seed: non-negative integer that fixes the clip.

    Returns:
        uint8 (T, 112, 112, 3) RGB with T in 16..24.

    Raises:
        InputError: pybullet is not installed.
    """
    action = mocap_class.action
    rng = np.random.default_rng([seed, SPLITS.index(split), ACTIONS.index(action)])
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    shares = draw_shares(split, frames, action.cyclic, rng)
    mirrored = bool(rng.random() < 0.5)
    poses = load_recording(action.recording).at(shares, action.cyclic)
    clip = render_person(poses, draw_camera(split, rng), mirrored, rng)
    backwards = mocap_class.reverse != (action.sided and mirrored)
    return np.ascontiguousarray(clip[::-1]) if backwards else clip


def draw_clip(mocap_class: MocapClass, split: str, number: int, seed: int) -> np.ndarray:
    """Clip `number` of a class and split in the data set of this seed, uint8 (T, 112, 112, 3) RGB."""
    return render_clip(mocap_class, split, mix_seeds(seed, SPLITS.index(split), CLASSES.index(mocap_class), number))


DATA_SET = RenderedSet("mocap", 1, BASE_CLASSES, NOVEL_CLASSES, draw_clip, lambda: load_recording(ACTIONS[0].recording))
render_dataset = DATA_SET.render
