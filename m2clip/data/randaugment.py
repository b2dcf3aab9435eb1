"""RandAugment "rand-m7-n4-mstd0.5-inc1" on a whole clip: every frame gets the same operations at the same strength.

The fifteen operations are those of timm's RandAugment, which the published recipes use, to the last bit: by Pillow on
bytes, geometry with bicubic interpolation and grey where nothing of the frame is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform
from torch import Tensor

_COUNT, _PROBABILITY = 4, 0.5
_LEVEL, _STD = 7.0, 0.5
_FILL = (128, 128, 128)


def randaugment(frames: Tensor, rng: random.Random) -> Tensor:
    """rand-m7-n4-mstd0.5-inc1: four draws with replacement, each applied with probability one half.

    Args:
        frames: (T, 3, H, W) uint8, as is the result.
        rng: of all random choices.
    """
    chosen = []
    for name in rng.choices(list(OPERATIONS), k=_COUNT):
        apply = rng.random() < _PROBABILITY
        strength = min(max(rng.gauss(_LEVEL, _STD), 0.0), 10.0) / 10
        sign = rng.choice((-1, 1))
        if apply:
            chosen.append((OPERATIONS[name], strength, sign))
    if not chosen:
        return frames
    changed = np.empty((len(frames), *frames.shape[2:], 3), np.uint8)
    for place, frame in zip(changed, frames.permute(0, 2, 3, 1), strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame.numpy()))
        for operation, strength, sign in chosen:
            image = operation(image, strength, sign)
        place[...] = np.asarray(image)
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """The frame whose pixel at (x, y) was at (a x + b y + c, d x + e y + f), about its upper left corner."""
    return image.transform(image.size, Transform.AFFINE, matrix, resample=Resampling.BICUBIC, fillcolor=_FILL)


def _mapped(image: Image.Image, value: Callable[[int], int]) -> Image.Image:
    """The frame with every byte replaced by a function of it."""
    return image.point([value(byte) for byte in range(256)] * 3)


def _posterize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    dropped = 4 + int(strength * 4)
    return _mapped(image, lambda byte: byte & 255 >> dropped << dropped)


def _solarize_add(image: Image.Image, strength: float, sign: int) -> Image.Image:
    added = int(strength * 110)
    return _mapped(image, lambda byte: min(255, byte + added) if byte < 128 else byte)


def _enhanced(kind: Callable[[Image.Image], Any]) -> Operation:
    return lambda image, strength, sign: kind(image).enhance(1 + sign * strength * 0.9)


# Each operation takes (frame, strength in 0 ... 1, sign); "increasing": more strength never means less change.
Operation = Callable[[Image.Image, float, int], Image.Image]
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "invert": lambda image, strength, sign: ImageOps.invert(image),
    "rotate": lambda image, strength, sign: image.rotate(
        sign * strength * 30, resample=Resampling.BICUBIC, fillcolor=_FILL
    ),
    "posterize": _posterize,
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, 256 - int(strength * 256)),
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, strength, sign: _affine(image, 1, sign * strength * 0.3, 0, 0, 1, 0),
    "shear_y": lambda image, strength, sign: _affine(image, 1, 0, 0, sign * strength * 0.3, 1, 0),
    "translate_x": lambda image, strength, sign: _affine(image, 1, 0, sign * strength * 0.45 * image.width, 0, 1, 0),
    "translate_y": lambda image, strength, sign: _affine(image, 1, 0, 0, 0, 1, sign * strength * 0.45 * image.height),
}
