"""Numpy renderer of one textured shape on a textured background, the drawing half of the built-in data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
WAVES = 5

# Distance of the off-centre dot from the middle, in radii: it must lie on the material of the shape.
_DOT_DISTANCE = np.array([0.52, 0.45, 0.38, 0.40, 0.64, 0.66], np.float32)
_DOT_RADIUS = 0.27


@dataclass
class Look:
    """What stays the same within a clip; every array has one row for each of n scenes.

    Attributes:
        kind: (n,) indices into SHAPES.
        colour: (n, 3) RGB of the shape in 0..1.
        stripes: (n, 3) stripe frequency (radians a radius), phase (radians) and depth (0..1).
        ground: (n, 2, 3) the two RGB colours between which the background varies.
        waves: (n, WAVES, 4) wave vector x and y (radians a pixel), phase (radians) and amplitude.
    """

    kind: np.ndarray
    colour: np.ndarray
    stripes: np.ndarray
    ground: np.ndarray
    waves: np.ndarray


@dataclass
class Pose:
    """What motions animate; every array has shape (n,).

    Attributes:
        x, y: centre in pixels from the upper left corner.
        radius: radius in pixels.
        alpha: opacity, 0..1.
        angle: direction of the shape's dot in radians, clockwise on the screen from pointing right.
        drift_x, drift_y: displacement of the background in pixels.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    alpha: np.ndarray
    angle: np.ndarray
    drift_x: np.ndarray
    drift_y: np.ndarray


def draw_colours(
    rng: np.random.Generator, n: int, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Draw colours of any hue: float32 (n, 3) RGB in 0..1, saturation and value between the given bounds."""
    hue = rng.random((n, 1)) * 6.0
    s = rng.uniform(*saturation, (n, 1))
    v = rng.uniform(*value, (n, 1))
    k = (np.array([5.0, 3.0, 1.0]) + hue) % 6.0
    return (v * (1.0 - s * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))).astype(np.float32)


def draw_looks(rng: np.random.Generator, kind: np.ndarray) -> Look:
    """Draw colours and textures at random.

    Args:
        rng: source of randomness.
        kind: (n,) indices into SHAPES.

    Returns:
        A Look of n scenes.
    """
    n = len(kind)
    stripes = np.stack(
        [rng.uniform(5.0, 9.0, n), rng.uniform(0.0, 2 * np.pi, n), rng.uniform(0.25, 0.45, n)], axis=1
    ).astype(np.float32)
    ground = np.stack(
        [draw_colours(rng, n, (0.1, 0.6), (0.05, 0.25)), draw_colours(rng, n, (0.1, 0.6), (0.25, 0.45))], axis=1
    )
    length = np.exp(rng.uniform(np.log(9.0), np.log(48.0), (n, WAVES)))
    towards = rng.uniform(0.0, 2 * np.pi, (n, WAVES))
    waves = np.stack(
        [
            2 * np.pi / length * np.cos(towards),
            2 * np.pi / length * np.sin(towards),
            rng.uniform(0.0, 2 * np.pi, (n, WAVES)),
            rng.uniform(0.1, 0.4, (n, WAVES)),
        ],
        axis=2,
    ).astype(np.float32)
    return Look(np.asarray(kind), draw_colours(rng, n, (0.3, 1.0), (0.8, 1.0)), stripes, ground, waves)


def _reflect(u: np.ndarray, w: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Mirror the points beyond the line that leaves the u axis at `angle` back over it."""
    nu, nw = np.float32(-np.sin(angle)), np.float32(np.cos(angle))
    over = 2 * np.maximum(u * nu + w * nw, 0)
    return u - over * nu, w - over * nw


def _distance(kind: int, u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Signed distance in radii (negative inside) to a shape whose tip, if it has one, points along u."""
    name = SHAPES[kind]
    if name == "circle":
        return np.sqrt(u * u + w * w) - np.float32(0.9)
    if name == "square":
        return np.maximum(np.abs(u), np.abs(w)) - np.float32(0.78)
    if name == "triangle":
        slope = np.float32(0.5) * u + np.float32(np.sqrt(0.75)) * np.abs(w)
        return np.maximum(slope, -u) - np.float32(0.54)
    if name == "star":
        # The ten mirror wedges of the star fold onto one, where its outline is a single straight edge.
        w = np.abs(w)
        for angle in (np.pi * 3 / 5, np.pi * 2 / 5, np.pi / 5):
            u, w = _reflect(u, w, angle)
        tip, notch = 1.1, 0.46
        normal = np.array([notch * np.sin(np.pi / 5), tip - notch * np.cos(np.pi / 5)])
        normal /= np.linalg.norm(normal)
        return np.float32(normal[0]) * (u - np.float32(tip)) + np.float32(normal[1]) * w
    if name == "cross":
        u, w = np.abs(u), np.abs(w)
        return np.maximum(np.maximum(u, w) - np.float32(0.98), np.minimum(u, w) - np.float32(0.33))
    return np.abs(np.sqrt(u * u + w * w) - np.float32(0.68)) - np.float32(0.27)


def render_background(look: Look, drift_x: np.ndarray, drift_y: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Draw the backgrounds alone.

    Args:
        look: appearance of n scenes, or of one scene that all n drifts share.
        drift_x: (n,) displacement to the right, in pixels.
        drift_y: (n,) displacement downwards, in pixels.
        size: height and width in pixels.

    Returns:
        float32 (n, 3, size, size) RGB in 0..1.
    """
    n = len(drift_x)
    kx, ky, phase, amplitude = np.moveaxis(look.waves, 2, 0)
    at = np.arange(size, dtype=np.float32)
    offset = phase - kx * drift_x[:, None] - ky * drift_y[:, None]
    along_y = ky[..., None] * at + offset[..., None]
    along_x = np.broadcast_to(kx[..., None] * at, (n, WAVES, size))
    # cos(a + b) = cos a cos b - sin a sin b turns the sum of plane waves into one small matrix product.
    rows = np.concatenate([np.cos(along_y), -np.sin(along_y)], axis=1)
    rows *= np.concatenate([amplitude, amplitude], axis=1)[..., None]
    field = rows.astype(np.float32).transpose(0, 2, 1) @ np.concatenate([np.cos(along_x), np.sin(along_x)], axis=1)
    mix = np.clip(field + np.float32(0.5), 0, 1)[:, None]
    low, high = look.ground[:, 0, :, None, None], look.ground[:, 1, :, None, None]
    return low + mix * (high - low)


def render(look: Look, pose: Pose) -> np.ndarray:
    """Render scenes with anti-aliased edges.

    Args:
        look: appearance of n scenes, or of one scene that all n poses share.
        pose: n poses.

    Returns:
        uint8 (n, 64, 64, 3) RGB.
    """
    n = len(pose.x)
    # Colours stay the second dimension until the end: numpy is slow on a last dimension of three.
    image = render_background(look, pose.drift_x, pose.drift_y)
    kind = np.broadcast_to(look.kind, n)
    radius = pose.radius.astype(np.float32)[:, None, None]
    at = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    dx = (at - pose.x.astype(np.float32)[:, None])[:, None, :] / radius
    dy = (at - pose.y.astype(np.float32)[:, None])[:, :, None] / radius
    cos, sin = np.cos(pose.angle).astype(np.float32), np.sin(pose.angle).astype(np.float32)
    u = dx * cos[:, None, None] + dy * sin[:, None, None]
    w = dy * cos[:, None, None] - dx * sin[:, None, None]

    distance = np.empty_like(u)
    for k in np.unique(kind):
        of_kind = kind == k
        distance[of_kind] = _distance(int(k), u[of_kind], w[of_kind])
    cover = np.clip(np.float32(0.5) - distance * radius, 0, 1) * pose.alpha.astype(np.float32)[:, None, None]

    frequency, phase, depth = (column[:, None, None] for column in look.stripes.T)
    shade = 1 - depth * np.clip(np.float32(0.5) + np.float32(1.5) * np.sin(frequency * w + phase), 0, 1)
    from_dot = np.sqrt((u - _DOT_DISTANCE[kind][:, None, None]) ** 2 + w * w) - np.float32(_DOT_RADIUS)
    shade *= 1 - np.float32(0.94) * np.clip(np.float32(0.5) - from_dot * radius, 0, 1)

    cover = cover[:, None]
    image += cover * (shade[:, None] * look.colour[:, :, None, None] - image)
    image = (image * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))
