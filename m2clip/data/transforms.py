"""From decoded frames to the model's input: augmentation in training, fixed crops in testing.

All frames of a clip get the same random parameters, and every random number comes from the seed of the call.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from m2clip.choices import Augmentation, Transform
from m2clip.config_fields import DataConfig, EvalConfig, same, setting
from m2clip.data.multi_scale import color_jitter, multi_scale_crop
from m2clip.data.randaugment import randaugment
from m2clip.errors import InputError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # means and standard deviations of red, green and blue

NORMALIZATION: dict[str, Statistics] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
AUGMENTATIONS, TRANSFORMS = get_args(Augmentation), get_args(Transform)
INTERPOLATIONS = ("bilinear", "bicubic")
RESIZES = ("shortest", "squash")
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
        normalize: means and standard deviations of the three channels, or a name of `NORMALIZATION` for them.
        crops: test crops: 1 (centre), 3 (both ends of the long side and the centre) or "m2clip4".
        transform: how frames are resized: "standard" (with antialias, the long side rounded) or "authors"
            (bicubic without antialias after normalisation, the long side rounded down, as the code of M2-CLIP and
            ST-Adapter does); "multi_scale_crop" has one way only.
        interpolation: of the standard way: "bilinear" or "bicubic".
        resize: "shortest" (the short side) or, where the standard way takes a single crop, "squash" (both sides, so
            that a whole frame becomes square).

    Raises:
        InputError: a choice that does not exist.
    """

    size: int = setting(224, "clip", "height and width of the output", unit="pixels", at_least=1)
    augmentation: str = same(DataConfig, "augmentation")
    flip: bool = same(DataConfig, "flip")
    normalize: str | Statistics = same(DataConfig, "normalize", default="clip")
    crops: int | str = same(EvalConfig, "crops")
    transform: str = same(DataConfig, "transform")
    interpolation: str = setting("bilinear", "views", "of the standard way")
    resize: str = setting("shortest", "views", "the short side, or both, so that a whole frame becomes square")

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalize", statistics(self.normalize))
        for name, value, allowed in (
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("crops", self.crops, tuple(CROPS)),
            ("transform", self.transform, TRANSFORMS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("resize", self.resize, RESIZES),
        ):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")
        if self.size < 1:
            raise InputError(f"size must be at least 1 pixel, not {self.size}")


def statistics(value: Any) -> Statistics:
    """Means and standard deviations of a name, or of numbers such as a configuration holds.

    Raises:
        InputError: an unknown name, or not three finite numbers each, deviations above zero.
    """
    if isinstance(value, str):
        if value not in NORMALIZATION:
            raise InputError(f"normalize must be one of {', '.join(NORMALIZATION)}, not {value!r}")
        return NORMALIZATION[value]
    try:
        mean, std = (tuple(map(float, channels)) for channels in value)
        if len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0:
            return mean, std
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"normalize must be a name, or three means and three standard deviations, not {value!r}")


def statistics_name(value: Any) -> str:
    """The name of means and standard deviations, or their numbers in words."""
    found = statistics(value)
    name = next((name for name, known in NORMALIZATION.items() if known == found), None)
    return name or "mean {} {} {}, deviation {} {} {}".format(*found[0], *found[1])


class TrainTransform:
    """Random augmentation of one clip. Source: the recipes of M2-CLIP's code and of MSTA's training logs."""

    def __init__(self, settings: TransformSettings) -> None:
        self.settings = settings

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (T, 3, size, size) normalised floats; `seed` decides every random choice."""
        settings, rng = self.settings, random.Random(seed)
        if settings.augmentation == "crop_flip":
            frames = _crop_flip(_prepared(frames, settings), settings, rng)
        elif settings.augmentation == "randaugment":
            # More pixels than the usual 256 for a 224 crop only cost time in the colour operations.
            limit = round(settings.size * _RESIZED)
            if settings.transform == "standard" and min(frames.shape[-2:]) > limit:
                frames = _short_side(frames, limit, settings)
            frames = _random_resized_crop(_prepared(randaugment(frames, rng), settings), settings, rng)
        elif settings.augmentation == "multi_scale_crop":
            frames = _short_side(frames, round(settings.size * _RESIZED), settings)
            frames = multi_scale_crop(frames, settings.size, settings.flip, rng)
            frames = color_jitter(frames, rng)
        else:
            frames = _crop(_resized(frames, settings, crops=1), settings.size, 2)
        return normalized(frames, settings)


class EvalTransform:
    """Resize of the short side and fixed crops along the long side."""

    def __init__(self, settings: TransformSettings) -> None:
        self.settings = settings
        self.num_crops = len(CROPS[settings.crops])

    def __call__(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (crops, T, 3, size, size) normalised floats."""
        return normalized(self.cut(frames), self.settings)

    def cut(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (crops, T, 3, size, size), uint8 where they are cut before `normalized`."""
        resized = _resized(frames, self.settings, self.num_crops)
        return torch.stack([_crop(resized, self.settings.size, quarters) for quarters in CROPS[self.settings.crops]])


def _prepared(frames: Tensor, settings: TransformSettings) -> Tensor:
    """Frames as they are resized: uint8 by the standard way, normalised floats by the authors'."""
    return normalized(frames, settings) if settings.transform == "authors" else frames


def normalized(frames: Tensor, settings: TransformSettings) -> Tensor:
    """Normalised floats (..., 3, H, W) of uint8 frames, or of frames that are so already."""
    if frames.is_floating_point():
        return frames
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics(settings.normalize))
    return frames.float().div_(255).sub_(mean).div_(std)


def _resized(frames: Tensor, settings: TransformSettings, crops: int) -> Tensor:
    """Frames of which so many test crops are cut."""
    if settings.resize == "squash" and crops == 1 and settings.transform == "standard":
        return _resize(frames, settings.size, settings.size, settings)
    return _short_side(_prepared(frames, settings), settings.size, settings)


def _resize(frames: Tensor, height: int, width: int, settings: TransformSettings) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if frames.is_floating_point():
        return torch.nn.functional.interpolate(frames, (height, width), mode="bicubic", align_corners=False)
    return F.resize(frames, [height, width], InterpolationMode(settings.interpolation), antialias=True)


def _short_side(frames: Tensor, size: int, settings: TransformSettings) -> Tensor:
    extents = frames.shape[-2:]
    if frames.is_floating_point():
        height, width = (extent * size // min(extents) for extent in extents)
    else:
        height, width = (max(round(extent * (size / min(extents))), size) for extent in extents)
    return _resize(frames, height, width, settings)


def _crop(frames: Tensor, size: int, quarters: int) -> Tensor:
    top, left = ((extent - size) * quarters // 4 for extent in frames.shape[-2:])
    if frames.shape[-2] <= frames.shape[-1]:
        top = (frames.shape[-2] - size) // 2
    else:
        left = (frames.shape[-1] - size) // 2
    return frames[..., top : top + size, left : left + size]


def _crop_flip(frames: Tensor, settings: TransformSettings, rng: random.Random) -> Tensor:
    size = settings.size
    resized = _short_side(frames, round(size * rng.uniform(1.0, 1.15)), settings)
    top, left = (rng.randint(0, extent - size) for extent in resized.shape[-2:])
    cropped = resized[..., top : top + size, left : left + size]
    return cropped.flip(-1) if settings.flip and rng.random() < 0.5 else cropped


def _random_resized_crop(frames: Tensor, settings: TransformSettings, rng: random.Random) -> Tensor:
    """A crop of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3, resized to a square."""
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
    return _resize(
        frames[..., top : top + crop_height, left : left + crop_width], settings.size, settings.size, settings
    )
