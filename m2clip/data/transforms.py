"""From decoded frames to the model's input: augmentation in training, fixed crops in testing.

All frames of a clip get the same random parameters, and every random number comes from the seed of the call.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from m2clip.data.multi_scale import color_jitter, multi_scale_crop
from m2clip.data.randaugment import randaugment
from m2clip.errors import InputError

NORMALIZATION: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
AUGMENTATIONS = ("crop_flip", "randaugment", "multi_scale_crop", "none")
_RESIZED = 256 / 224  # short side of resized frames by that of their crops

# Offsets of the test crops along the long side, in quarters of the margin; "m2clip4" is what the authors' code does.
CROPS: dict[int | str, tuple[int, ...]] = {1: (2,), 3: (0, 2, 4), "m2clip4": (0, 1, 2, 4)}


@dataclass(frozen=True)
class TransformSettings:
    """What happens to decoded frames.

    Args:
        size: height and width of the output, in pixels.
        augmentation: training: "crop_flip" (short side 1.0-1.15 x size, random crop, flip), "randaugment"
            (rand-m7-n4-mstd0.5-inc1 and a random resized crop, never a flip), "multi_scale_crop" (a crop of one of
            four sizes at a corner or the centre, flip, colour jitter, grey) or "none" (the test transform, centred).
        flip: whether "crop_flip" and "multi_scale_crop" mirror half of the clips; switch it off where classes name left
            and right.
        normalize: "clip" or "imagenet" mean and standard deviation.
        crops: test crops: 1 (centre), 3 (both ends of the long side and the centre) or "m2clip4".

    Raises:
        InputError: a choice that does not exist.
    """

    size: int = 224
    augmentation: str = "crop_flip"
    flip: bool = True
    normalize: str = "clip"
    crops: int | str = 1

    def __post_init__(self) -> None:
        for field, value, choices in (
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("normalize", self.normalize, tuple(NORMALIZATION)),
            ("crops", self.crops, tuple(CROPS)),
        ):
            if value not in choices:
                raise InputError(f"{field} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if self.size < 1:
            raise InputError(f"size must be at least 1 pixel, not {self.size}")


class TrainTransform:
    """Random augmentation of one clip. Source: the recipes of M2-CLIP's code and of MSTA's training logs."""

    def __init__(self, settings: TransformSettings) -> None:
        self.settings = settings

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (T, 3, size, size) normalised floats; `seed` decides every random choice."""
        settings, rng = self.settings, random.Random(seed)
        if settings.augmentation == "crop_flip":
            frames = _crop_flip(frames, settings.size, settings.flip, rng)
        elif settings.augmentation == "randaugment":
            # More pixels than the usual 256 for a 224 crop only cost time in the colour operations.
            limit = round(settings.size * _RESIZED)
            frames = _short_side(frames, limit) if min(frames.shape[-2:]) > limit else frames
            frames = _random_resized_crop(randaugment(frames, rng), settings.size, rng)
        elif settings.augmentation == "multi_scale_crop":
            frames = _short_side(frames, round(settings.size * _RESIZED))
            frames = multi_scale_crop(frames, settings.size, settings.flip, rng)
            frames = color_jitter(frames, rng)
        else:
            frames = _crop(_short_side(frames, settings.size), settings.size, 2)
        return _normalized(frames, settings.normalize)


class EvalTransform:
    """Resize of the short side and fixed crops along the long side."""

    def __init__(self, settings: TransformSettings) -> None:
        self.settings = settings
        self.num_crops = len(CROPS[settings.crops])

    def __call__(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (crops, T, 3, size, size) normalised floats."""
        settings = self.settings
        resized = _short_side(frames, settings.size)
        crops = [_crop(resized, settings.size, quarters) for quarters in CROPS[settings.crops]]
        return torch.stack([_normalized(crop, settings.normalize) for crop in crops])


def _short_side(frames: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    return F.resize(frames, [max(round(height * scale), size), max(round(width * scale), size)], antialias=True)


def _crop(frames: Tensor, size: int, quarters: int) -> Tensor:
    top, left = ((extent - size) * quarters // 4 for extent in frames.shape[-2:])
    if frames.shape[-2] <= frames.shape[-1]:
        top = (frames.shape[-2] - size) // 2
    else:
        left = (frames.shape[-1] - size) // 2
    return frames[..., top : top + size, left : left + size]


def _crop_flip(frames: Tensor, size: int, flip: bool, rng: random.Random) -> Tensor:
    resized = _short_side(frames, round(size * rng.uniform(1.0, 1.15)))
    top, left = (rng.randint(0, extent - size) for extent in resized.shape[-2:])
    cropped = resized[..., top : top + size, left : left + size]
    return cropped.flip(-1) if flip and rng.random() < 0.5 else cropped


def _normalized(frames: Tensor, name: str) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION[name])
    return (frames.float() / 255 - mean) / std


def _random_resized_crop(frames: Tensor, size: int, rng: random.Random) -> Tensor:
    """A crop of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3, resized to a square."""
    from torchvision.transforms.v2 import functional as F

    height, width = frames.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:
        crop_width = crop_height = min(height, width)
    top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
    return F.resized_crop(frames, top, left, crop_height, crop_width, [size, size], antialias=True)
