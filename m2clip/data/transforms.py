"""From decoded frames to the model's input: augmentation in training, fixed crops in testing.

All frames of a clip get the same random parameters, and every random number comes from the seed of the call.
"""

from __future__ import annotations

import math
import operator
import random
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from m2clip.choices import Augmentation, Transform
from m2clip.config_fields import DataConfig, EvalConfig, same, setting
from m2clip.data.boxes import covering, largest_within, scaled
from m2clip.data.multi_scale import color_jitter, multi_scale_crop
from m2clip.data.randaugment import randaugment
from m2clip.errors import InputError
from m2clip.sizes import Size, plain_size, sides

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # means and standard deviations of red, green and blue

NORMALIZATION: dict[str, Statistics] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
AUGMENTATIONS, TRANSFORMS = get_args(Augmentation), get_args(Transform)
INTERPOLATIONS = ("bilinear", "bicubic")
RESIZES = ("shortest", "squash")
_RESIZED = 256 / 224  # sides of resized frames by those of their crops

# Offsets of the test crops along the side that is left over, in quarters of the margin; "m2clip4" is what the authors'
# code does.
CROPS: dict[int | str, tuple[int, ...]] = {1: (2,), 3: (0, 2, 4), "m2clip4": (0, 1, 2, 4)}


@dataclass(frozen=True)
class TransformSettings:
    """What happens to decoded frames.

    Args:
        size: of the output, in pixels: one number, or (height, width). Frames are resized until they just cover it, and
            what is left over on one side is cut off: of square outputs the short side becomes the size.
        augmentation: training: "crop_flip" (resized to cover 1.0-1.15 x size, random crop, flip), "randaugment"
            (rand-m7-n4-mstd0.5-inc1 and a random resized crop, never a flip), "multi_scale_crop" (a crop of one of
            four sizes at a corner or the centre, flip, colour jitter, grey) or "none" (the test transform, centred).
        flip: whether "crop_flip" and "multi_scale_crop" mirror half of the clips; switch it off where classes name left
            and right.
        normalize: means and standard deviations of the three channels, or a name of `NORMALIZATION` for them.
        crops: test crops: 1 (centre), 3 (both ends of the side that is left over and the centre) or "m2clip4".
        transform: how frames are resized: "standard" (with antialias, the other side rounded) or "authors"
            (bicubic without antialias after normalisation, the other side rounded down, as the code of M2-CLIP and
            ST-Adapter does); "multi_scale_crop" has one way only.
        interpolation: of the standard way: "bilinear" or "bicubic".
        resize: "shortest" (as said above) or, where the standard way takes a single crop, "squash" (both sides, so that
            a whole frame gets the size).

    Raises:
        InputError: a choice or a size that does not exist.
    """

    size: Size = setting(224, "clip", "height and width of the output", unit="pixels")
    augmentation: str = same(DataConfig, "augmentation")
    flip: bool = same(DataConfig, "flip")
    normalize: str | Statistics = same(DataConfig, "normalize", default="clip")
    crops: int | str = same(EvalConfig, "crops")
    transform: str = same(DataConfig, "transform")
    interpolation: str = setting("bilinear", "views", "of the standard way")
    resize: str = setting("shortest", "views", "the side that fits first, or both, so that a whole frame gets the size")

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", plain_size(self.size, "size"))
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
        """(T, 3, H, W) uint8 frames -> (T, 3, height, width) normalised floats; `seed` decides every random choice."""
        settings, rng, box = self.settings, random.Random(seed), sides(self.settings.size)
        # More pixels than the usual 256 for a 224 crop only cost time in the operations on colours.
        larger = scaled(box, _RESIZED)
        if settings.augmentation == "crop_flip":
            frames = _crop_flip(_prepared(frames, settings), settings, rng)
        elif settings.augmentation == "randaugment":
            if settings.transform == "standard" and all(map(operator.gt, frames.shape[-2:], larger)):
                frames = _cover(frames, larger, settings)
            frames = _random_resized_crop(_prepared(randaugment(frames, rng), settings), settings, rng)
        elif settings.augmentation == "multi_scale_crop":
            frames = multi_scale_crop(_cover(frames, larger, settings), box, settings.flip, rng)
            frames = color_jitter(frames, rng)
        else:
            frames = _crop(_resized(frames, settings, crops=1), box, quarters=2)
        return normalized(frames, settings)


class EvalTransform:
    """Frames that just cover the size, and fixed crops along the side that is left over."""

    def __init__(self, settings: TransformSettings) -> None:
        self.settings = settings
        self.num_crops = len(CROPS[settings.crops])

    def __call__(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (crops, T, 3, height, width) normalised floats."""
        return normalized(self.cut(frames), self.settings)

    def cut(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 frames -> (crops, T, 3, height, width), uint8 where they are cut before `normalized`."""
        resized, box = _resized(frames, self.settings, self.num_crops), sides(self.settings.size)
        return torch.stack([_crop(resized, box, quarters) for quarters in CROPS[self.settings.crops]])


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
        return _resize(frames, sides(settings.size), settings)
    return _cover(_prepared(frames, settings), sides(settings.size), settings)


def _resize(frames: Tensor, box: tuple[int, int], settings: TransformSettings) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if frames.is_floating_point():
        return torch.nn.functional.interpolate(frames, box, mode="bicubic", align_corners=False)
    return F.resize(frames, list(box), InterpolationMode(settings.interpolation), antialias=True)


def _cover(frames: Tensor, box: tuple[int, int], settings: TransformSettings) -> Tensor:
    """Frames (..., H, W) as small as they can be to cover a box of (height, width), their aspect kept."""
    return _resize(frames, covering(frames.shape[-2:], box, down=frames.is_floating_point()), settings)


def _crop(frames: Tensor, box: tuple[int, int], quarters: int) -> Tensor:
    """A box of frames that just cover it, so many quarters along the side that is left over."""
    top, left = ((extent - side) * quarters // 4 for extent, side in zip(frames.shape[-2:], box, strict=True))
    return frames[..., top : top + box[0], left : left + box[1]]


def _crop_flip(frames: Tensor, settings: TransformSettings, rng: random.Random) -> Tensor:
    box = sides(settings.size)
    resized = _cover(frames, scaled(box, rng.uniform(1.0, 1.15)), settings)
    top, left = (rng.randint(0, extent - side) for extent, side in zip(resized.shape[-2:], box, strict=True))
    cropped = resized[..., top : top + box[0], left : left + box[1]]
    return cropped.flip(-1) if settings.flip and rng.random() < 0.5 else cropped


def _random_resized_crop(frames: Tensor, settings: TransformSettings, rng: random.Random) -> Tensor:
    """A crop of 8 to 100 % of the area whose aspect ratio is 3/4 to 4/3 of the output's, resized to that."""
    (height, width), box = frames.shape[-2:], sides(settings.size)
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) * box[1] / box[0]
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:
        crop_height, crop_width = (max(round(side), 1) for side in largest_within((height, width), box))
    top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
    return _resize(frames[..., top : top + crop_height, left : left + crop_width], box, settings)
