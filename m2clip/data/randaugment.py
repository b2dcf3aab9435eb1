"""RandAugment "rand-m7-n4-mstd0.5-inc1" on a whole clip: every frame gets the same operations at the same strength.

The fifteen operations and their ranges are those of timm's RandAugment, which the published recipes use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

_COUNT, _PROBABILITY = 4, 0.5
_LEVEL, _STD = 7.0, 0.5
_FILL = [128.0]

# Each operation takes (frames, strength in 0 ... 1, sign); "increasing": more strength never means less change.
_OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {}


def _operation(function: Callable[[Tensor, float, int], Tensor]) -> Callable[[Tensor, float, int], Tensor]:
    _OPERATIONS[function.__name__.lstrip("_")] = function
    return function


def randaugment(frames: Tensor, rng: random.Random) -> Tensor:
    """rand-m7-n4-mstd0.5-inc1: four draws with replacement, each applied with probability one half."""
    for name in rng.choices(list(_OPERATIONS), k=_COUNT):
        apply = rng.random() < _PROBABILITY
        strength = min(max(rng.gauss(_LEVEL, _STD), 0.0), 10.0) / 10
        sign = rng.choice((-1, 1))
        if apply:
            frames = _OPERATIONS[name](frames, strength, sign)
    return frames


def _affine(frames: Tensor, angle: float = 0.0, x: float = 0.0, y: float = 0.0, shear: tuple = (0.0, 0.0)) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    return F.affine(
        frames,
        angle=angle,
        translate=[x, y],
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=_FILL,
    )


@_operation
def _autocontrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.autocontrast(frames)


@_operation
def _equalize(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.equalize(frames)


@_operation
def _invert(frames: Tensor, strength: float, sign: int) -> Tensor:
    return 255 - frames


@_operation
def _rotate(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _affine(frames, angle=sign * strength * 30)


@_operation
def _posterize(frames: Tensor, strength: float, sign: int) -> Tensor:
    dropped = 8 - (4 - int(strength * 4))
    return frames >> dropped << dropped


@_operation
def _solarize(frames: Tensor, strength: float, sign: int) -> Tensor:
    return torch.where(frames < 256 - int(strength * 256), frames, 255 - frames)


@_operation
def _solarize_add(frames: Tensor, strength: float, sign: int) -> Tensor:
    added = (frames.to(torch.int16) + int(strength * 110)).clamp(max=255).to(torch.uint8)
    return torch.where(frames < 128, added, frames)


@_operation
def _color(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.adjust_saturation(frames, max(0.1, 1 + sign * strength * 0.9))


@_operation
def _contrast(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.adjust_contrast(frames, max(0.1, 1 + sign * strength * 0.9))


@_operation
def _brightness(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.adjust_brightness(frames, max(0.1, 1 + sign * strength * 0.9))


@_operation
def _sharpness(frames: Tensor, strength: float, sign: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.adjust_sharpness(frames, max(0.1, 1 + sign * strength * 0.9))


@_operation
def _shear_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _affine(frames, shear=(sign * math.degrees(math.atan(strength * 0.3)), 0.0))


@_operation
def _shear_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _affine(frames, shear=(0.0, sign * math.degrees(math.atan(strength * 0.3))))


@_operation
def _translate_x(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _affine(frames, x=sign * strength * 0.45 * frames.shape[-1])


@_operation
def _translate_y(frames: Tensor, strength: float, sign: int) -> Tensor:
    return _affine(frames, y=sign * strength * 0.45 * frames.shape[-2])
