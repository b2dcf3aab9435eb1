"""Motion-captured people on a moving background: recordings played on pybullet's humanoid, drawn without a GPU.

The recordings (one for each of 15 actions) and the humanoid come with the pybullet package (zlib licence). pybullet is
imported when the first frame is drawn and not before.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from m2clip.data.built_in.motion_render import draw_colours, draw_looks, render_background
from m2clip.errors import InputError

SIZE = 112
# Figures are drawn this many times larger and averaged: TinyRenderer's own edges are jagged.
_OVERSAMPLING = 2
_FIELD_OF_VIEW = 42.0
_LIMBS = (
    *("chest", "neck", "right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow"),
    *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"),
)
_HINGES = ("knee", "elbow")
# Which parts of the body share a colour: skin, shirt, trousers, shoes.
_CLOTHES = {
    "skin": ("neck", "right_elbow", "right_wrist", "left_elbow", "left_wrist"),
    "shirt": ("root", "chest", "right_shoulder", "left_shoulder"),
    "trousers": ("right_hip", "right_knee", "left_hip", "left_knee"),
    "shoes": ("right_ankle", "left_ankle"),
}


@dataclass(frozen=True)
class Recording:
    """A motion capture of one person; y is up, the person looks along x at first and has its right hand towards z.

    Attributes:
        times: (N,) seconds of each pose, from 0.
        poses: (N, 43) place of the root in metres (3), its rotation (quaternion w x y z), then the joints of _LIMBS: a
            quaternion each, or the angle in radians of a hinge.
    """

    times: np.ndarray
    poses: np.ndarray

    def at(self, shares: np.ndarray, cyclic: bool) -> np.ndarray:
        """Poses at shares of the recording, between two captured ones where need be.

        Args:
            shares: (T,) 0 for its beginning, 1 for its end; beyond 1 only if cyclic.
            cyclic: begin anew after the end, at the place that was reached.

        Returns:
            (T, 43).
        """
        turns = np.floor(shares) if cyclic else np.zeros_like(shares)
        at = np.interp((shares - turns) * self.times[-1], self.times, np.arange(len(self.times)))
        low = np.minimum(at.astype(int), len(self.times) - 2)
        before, after = self.poses[low], self.poses[low + 1]
        part = (at - low)[:, None]
        poses = before + part * (after - before)
        for start in _quaternions():
            columns = slice(start, start + 4)
            first, second = before[:, columns], after[:, columns]
            # Two signs stand for one rotation: the nearer one is the short way.
            same = np.where((first * second).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
            between = first + part * (same * second - first)
            poses[:, columns] = between / np.linalg.norm(between, axis=1, keepdims=True)
        travelled = self.poses[-1, :3] - self.poses[0, :3]
        poses[:, :3] += turns[:, None] * travelled * np.array([1.0, 0.0, 1.0])
        return poses


@dataclass(frozen=True)
class Camera:
    """Where the camera stands.

    Attributes:
        azimuth: radians from where the person looks at first, positive towards its right.
        elevation: radians above the horizon.
        distance: metres from what it looks at.
        follow: 0 for a camera at rest, 1 for one that moves along with the person.
    """

    azimuth: float
    elevation: float
    distance: float
    follow: float


def render_person(poses: np.ndarray, camera: Camera, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw poses in random clothes on a random background that drifts.

    Args:
        poses: (T, 43) as from `Recording.at`.
        camera: where from.
        mirrored: show the person's mirror image.
        rng: source of colours, light and background.

    Returns:
        uint8 (T, 112, 112, 3) RGB.

    Raises:
        InputError: pybullet is not installed.
    """
    scene = _scene()
    scene.dress(rng)
    light = _towards(rng.uniform(0.0, 2 * np.pi), rng.uniform(0.5, 1.2))
    path = poses[:, :3]
    middle = (path.min(axis=0) + path.max(axis=0)) / 2
    # Room for the way that the camera does not go along with.
    distance = camera.distance + (1.0 - camera.follow) * np.ptp(path[:, [0, 2]], axis=0).max()
    figures, masks = [], []
    for pose in poses:
        looked_at = middle + camera.follow * (pose[:3] - middle)
        looked_at[1] = 0.8
        eye = looked_at + distance * _towards(camera.azimuth, camera.elevation)
        figure, mask = scene.draw(pose, eye, looked_at, light)
        figures.append(figure)
        masks.append(mask)
    cover, figure = np.stack(masks)[:, None], np.stack(figures).transpose(0, 3, 1, 2)
    if mirrored:
        cover, figure = cover[..., ::-1], figure[..., ::-1]
    towards, speed = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.3, 1.5)
    steps = speed * np.arange(len(poses))
    look = draw_looks(rng, np.array([0]))
    ground = render_background(look, steps * np.cos(towards), steps * np.sin(towards), SIZE)
    # A figure's colours come multiplied by its cover.
    image = ground * (1 - cover) + figure
    return np.ascontiguousarray((image * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))


@cache
def load_recording(name: str) -> Recording:
    """A recording of pybullet_data by name, such as "walk".

    Raises:
        InputError: pybullet is not installed, or has no such recording.
    """
    path = _data_folder() / "data" / "motions" / f"humanoid3d_{name}.txt"
    try:
        frames = np.array(json.loads(path.read_text(encoding="utf-8"))["Frames"])
    except OSError:
        raise InputError(f"{path}: this pybullet has no such recording; the mocap data set needs pybullet 3") from None
    times = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    return Recording(times, frames[:, 1:])


class _Scene:
    """The humanoid in a physics client of its own, one for each process."""

    def __init__(self) -> None:
        with _silence():
            import pybullet

            self.bullet = pybullet
            self.client = pybullet.connect(pybullet.DIRECT)
            self.body = pybullet.loadURDF(
                str(_data_folder() / "humanoid" / "humanoid.urdf"),
                useFixedBase=True,
                globalScaling=0.25,  # to metres
                physicsClientId=self.client,
            )
        joints = range(pybullet.getNumJoints(self.body, self.client))
        names = [pybullet.getJointInfo(self.body, joint, self.client)[12].decode() for joint in joints]
        self.link = {name: joint for joint, name in enumerate(names)}
        side = SIZE * _OVERSAMPLING
        self.projection = pybullet.computeProjectionMatrixFOV(_FIELD_OF_VIEW, 1.0, 0.1, 30.0)
        self.side = side

    def dress(self, rng: np.random.Generator) -> None:
        """Random colours for skin, shirt, trousers and shoes."""
        bounds = {"skin": ((0.2, 0.6), (0.55, 1.0))}
        for clothes, parts in _CLOTHES.items():
            colour = draw_colours(rng, 1, *bounds.get(clothes, ((0.2, 1.0), (0.5, 1.0))))[0]
            for part in parts:
                self.bullet.changeVisualShape(
                    self.body, self.link[part], rgbaColor=[*colour.tolist(), 1.0], physicsClientId=self.client
                )

    def draw(
        self, pose: np.ndarray, eye: np.ndarray, looked_at: np.ndarray, light: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The figure (112, 112, 3) in 0..1 multiplied by its cover, and the cover (112, 112)."""
        self._take(pose)
        view = self.bullet.computeViewMatrix(eye.tolist(), looked_at.tolist(), [0.0, 1.0, 0.0])
        _, _, pixels, _, bodies = self.bullet.getCameraImage(
            self.side,
            self.side,
            view,
            self.projection,
            lightDirection=light.tolist(),
            shadow=0,
            renderer=self.bullet.ER_TINY_RENDERER,
            physicsClientId=self.client,
        )
        cover = (np.reshape(bodies, (self.side, self.side)) >= 0).astype(np.float32)
        colours = np.reshape(pixels, (self.side, self.side, 4))[..., :3].astype(np.float32) / 255 * cover[..., None]
        block = (SIZE, _OVERSAMPLING, SIZE, _OVERSAMPLING)
        return colours.reshape(*block, 3).mean(axis=(1, 3)), cover.reshape(block).mean(axis=(1, 3))

    def _take(self, pose: np.ndarray) -> None:
        turn = np.roll(pose[3:7], -1)
        self.bullet.resetBasePositionAndOrientation(
            self.body, pose[:3].tolist(), turn.tolist(), physicsClientId=self.client
        )
        start = 7
        for limb in _LIMBS:
            width = 1 if limb.endswith(_HINGES) else 4
            value = pose[start : start + width]
            self.bullet.resetJointStateMultiDof(
                self.body,
                self.link[limb],
                # pybullet writes quaternions x y z w.
                (value if width == 1 else np.roll(value, -1)).tolist(),
                physicsClientId=self.client,
            )
            start += width


@cache
def _scene() -> _Scene:
    return _Scene()


@cache
def _quaternions() -> tuple[int, ...]:
    """First columns of the quaternions of a pose."""
    found, start = [3], 7
    for limb in _LIMBS:
        hinge = limb.endswith(_HINGES)
        found += [] if hinge else [start]
        start += 1 if hinge else 4
    return tuple(found)


def _towards(azimuth: float, elevation: float) -> np.ndarray:
    across = np.cos(elevation)
    return np.array([across * np.cos(azimuth), np.sin(elevation), across * np.sin(azimuth)])


def _data_folder() -> Path:
    try:
        import pybullet_data
    except ImportError:
        raise InputError("the mocap data set needs pybullet: pip install 'm2clip[mocap]'") from None
    return Path(pybullet_data.getDataPath())


@contextmanager
def _silence() -> Iterator[Any]:
    """Keep pybullet's build time and warnings, which it writes past Python, off the terminal and out of --json."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        libc.fflush(None)
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
