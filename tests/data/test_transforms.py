"""Transforms: sizes, crop positions, one set of random parameters a clip, and nothing random but the seed."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2clip.data import multi_scale
from m2clip.data import randaugment as ra
from m2clip.data.transforms import (
    AUGMENTATIONS,
    NORMALIZATION,
    TRANSFORMS,
    EvalTransform,
    TrainTransform,
    TransformSettings,
    _cover,
    statistics_name,
)
from m2clip.errors import InputError


def picture(height: int, width: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """(frames, 3, height, width) uint8: the same smooth picture in every frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(height // 8, 2), max(width // 8, 2), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8).expand(frames, -1, -1, -1).contiguous()


def restored(video: torch.Tensor, name: str = "clip") -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION[name])
    return (video * std + mean) * 255


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("shape", [(64, 64), (64, 100), (31, 77), (200, 64)])
def test_training_size_from_any_shape(augmentation: str, size: int, shape: tuple[int, int], kind: str) -> None:
    transform = TrainTransform(TransformSettings(size=size, augmentation=augmentation, transform=kind))
    for seed in range(8):
        video = transform(picture(*shape), seed)
        assert (video.shape, video.dtype) == ((4, 3, size, size), torch.float32)
        assert video.isfinite().all()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_all_frames_get_the_same_parameters(augmentation: str) -> None:
    transform = TrainTransform(TransformSettings(size=48, augmentation=augmentation))
    for seed in range(30):
        video = transform(picture(64, 80), seed)
        assert torch.equal(video, video[:1].expand_as(video))


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment", "multi_scale_crop"])
def test_the_seed_alone_decides(augmentation: str) -> None:
    transform = TrainTransform(TransformSettings(size=48, augmentation=augmentation))
    frames = picture(64, 80)
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = [transform(frames, seed) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(2)
    random.seed(2)
    assert all(torch.equal(transform(frames, seed), video) for seed, video in enumerate(first))
    assert len({video.sum().item() for video in first}) == 12


def mirrored(video: torch.Tensor) -> bool:
    """Whether the bright half of a left-dark, right-bright picture is on the left."""
    half = video.shape[-1] // 2
    return bool(video[..., :half].mean() > video[..., half:].mean())


def left_dark(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.linspace(0, 255, width).to(torch.uint8).expand(2, 3, height, width).contiguous()


@pytest.mark.parametrize("augmentation", ["crop_flip", "multi_scale_crop"])
def test_flip_mirrors_about_half_of_the_clips(augmentation: str) -> None:
    transform = TrainTransform(TransformSettings(size=48, augmentation=augmentation))
    count = sum(mirrored(transform(left_dark(), seed)) for seed in range(200))
    assert 70 < count < 130


@pytest.mark.parametrize(
    "settings",
    [
        TransformSettings(size=48, flip=False),
        TransformSettings(size=48, augmentation="multi_scale_crop", flip=False),
        TransformSettings(size=48, augmentation="none"),
        TransformSettings(size=48, crops=1),
    ],
)
def test_no_flip_where_none_is_asked_for(settings: TransformSettings) -> None:
    assert not any(mirrored(TrainTransform(settings)(left_dark(), seed)) for seed in range(100) if not settings.flip)
    assert not mirrored(EvalTransform(settings)(left_dark()))


def test_crop_flip_scales_the_short_side_up_to_115_percent() -> None:
    transform = TrainTransform(TransformSettings(size=60, flip=False))
    spans = []
    for seed in range(150):
        row = restored(transform(left_dark(90, 90), seed))[0, 0, 30]
        spans.append((row[-1] - row[0]).item())
    # A crop of 60 of 60 to 69 pixels shows between 87 % and all of the gradient.
    assert min(spans) < 255 * 0.89
    assert min(spans) > 255 * 0.83
    assert max(spans) > 255 * 0.96


@pytest.mark.parametrize(
    ("crops", "offsets"),
    [(1, [20]), (3, [0, 20, 40]), ("m2clip4", [0, 10, 20, 40])],
)
@pytest.mark.parametrize("tall", [False, True])
def test_test_crops_lie_along_the_long_side(crops: int | str, offsets: list[int], tall: bool) -> None:
    frames = torch.randint(0, 256, (2, 3, 48, 88), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = frames.mT.contiguous() if tall else frames
    video = EvalTransform(TransformSettings(size=48, crops=crops))(frames)
    assert video.shape == (len(offsets), 2, 3, 48, 48)
    for crop, offset in zip(video, offsets, strict=True):
        window = frames[..., offset : offset + 48, :] if tall else frames[..., offset : offset + 48]
        torch.testing.assert_close(restored(crop), window.float(), atol=1e-3, rtol=0)


def test_square_video_gives_equal_crops() -> None:
    video = EvalTransform(TransformSettings(size=48, crops=3))(picture(64, 64))
    assert torch.equal(video[0], video[1])
    assert torch.equal(video[1], video[2])


@pytest.mark.parametrize("size", [32, 128])
def test_resizing_keeps_the_picture(size: int) -> None:
    video = restored(EvalTransform(TransformSettings(size=size))(left_dark()))[0, 0, 0]
    expected = torch.linspace(0, 255, size).expand(size, size)
    assert (video - expected).abs().max() < 6


def authors_views(frames: torch.Tensor, size: int, crops: int | str) -> torch.Tensor:
    """The authors' test transform in their order: normalise floats, resize them, cut windows along the long side."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION["clip"])
    video = (frames.float() / 255 - mean) / std
    height, width = video.shape[-2:]
    if height < width:
        height, width = size, width * size // height
    else:
        height, width = height * size // width, size
    video = torch.nn.functional.interpolate(
        video, size=(height, width), mode="bicubic", align_corners=False, antialias=False
    )
    margin = max(height, width) - size
    starts = {1: [margin // 2], 3: [0, margin // 2, margin], "m2clip4": [0, margin // 4, margin // 2, margin]}[crops]
    return torch.stack([video.narrow(-2 if height > width else -1, start, size) for start in starts])


@pytest.mark.parametrize("crops", [1, 3, "m2clip4"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 340, 224), (340, 256, 224), (256, 256, 224), (240, 427, 224), (224, 298, 224), (90, 161, 112), (33, 57, 64)],
)
def test_the_authors_transform(height: int, width: int, size: int, crops: int | str) -> None:
    frames = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = TransformSettings(size=size, crops=crops, transform="authors")
    views = EvalTransform(settings)(frames)
    assert (views - authors_views(frames, size, crops)).abs().mean() <= 1e-6
    # As decoders hand frames over, with the colours of a pixel side by side.
    side_by_side = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert (EvalTransform(settings)(side_by_side) - views).abs().mean() <= 1e-6


def test_training_without_augmentation_is_the_centre_of_the_test_transform() -> None:
    for kind in TRANSFORMS:
        settings = TransformSettings(size=48, augmentation="none", transform=kind)
        frames = picture(64, 101)
        assert torch.equal(TrainTransform(settings)(frames, 0), EvalTransform(settings)(frames)[0])


@pytest.mark.parametrize(
    ("shape", "standard", "authors"),
    [
        ((240, 320), (224, 299), (224, 298)),  # 298.67
        ((256, 340), (224, 298), (224, 297)),  # 297.5
        ((427, 240), (399, 224), (398, 224)),  # 398.53
        ((256, 341), (224, 298), (224, 298)),  # 298.375
        ((100, 100), (224, 224), (224, 224)),
    ],
)
def test_the_long_side_is_rounded_or_rounded_down(
    shape: tuple[int, int], standard: tuple[int, int], authors: tuple[int, int]
) -> None:
    frames = torch.zeros(1, 3, *shape, dtype=torch.uint8)
    assert _cover(frames, (224, 224), TransformSettings()).shape[-2:] == standard
    assert _cover(frames.float(), (224, 224), TransformSettings()).shape[-2:] == authors


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("clip", 0.48145466, 0.26862954), ("imagenet", 0.485, 0.229), ("inception", 0.5, 0.5)]
)
def test_normalisation(name: str, mean: float, std: float) -> None:
    video = EvalTransform(TransformSettings(size=16, normalize=name))(
        torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    )
    assert video[0, 0, 0, 0, 0].item() == pytest.approx((1 - mean) / std, rel=1e-6)


def test_multi_scale_crop_takes_every_size_and_place() -> None:
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(240), indexing="ij")
    frames = torch.stack([rows, columns, rows]).to(torch.uint8)[None]
    rng, seen = random.Random(0), set()
    for _ in range(2000):
        # Resized to 300, a crop's first and last pixels tell where it began and ended.
        crop = multi_scale.multi_scale_crop(frames, (300, 300), False, rng)[0, :2].int()
        seen.add((*crop[:, 0, 0].tolist(), *crop[:, -1, -1].tolist()))
    sides = (200, 175, 150, 132)
    expected = set()
    for i, height in enumerate(sides):
        for width in sides[max(i - 1, 0) : i + 2]:
            down, right = 200 - height, 240 - width
            places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
            expected |= {(top, left, top + height - 1, left + width - 1) for top, left in places}
    assert seen == expected


def test_color_jitter_and_grey_come_as_often_as_they_should() -> None:
    frames = picture(16, 16, frames=1)
    rng = random.Random(0)
    grey = same = 0
    for _ in range(500):
        changed = multi_scale.color_jitter(frames, rng)
        assert changed.dtype == torch.uint8
        grey += int(torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2]))
        same += int(torch.equal(changed, frames))
    # One in five is grey; of the others (400) one in five is as it was.
    assert 70 < grey < 130
    assert 50 < same < 110


# Names of our operations in timm, whose choice for "inc1" they are.
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize("name", TIMM)
def test_randaugment_operation_is_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    assert set(TIMM.values()) == set(timm._RAND_INCREASING_TRANSFORMS)
    image = Image.fromarray(picture(46, 61, frames=1)[0].permute(1, 2, 0).numpy())
    theirs, to_arguments = timm.NAME_TO_OP[TIMM[name]], timm.LEVEL_TO_ARG[TIMM[name]]
    for sign in (1, -1):
        monkeypatch.setattr(timm, "_randomly_negate", lambda value, sign=sign: sign * value)
        for level in (0.0, 3.3, 6.4, 7.0, 7.9, 10.0):
            if (name, level) == ("posterize", 10.0):
                continue  # Pillow refuses the 0 bits that timm asks it for
            arguments = to_arguments(level, {}) if to_arguments else ()
            expected = theirs(image, *arguments, fillcolor=(128, 128, 128), resample=Image.Resampling.BICUBIC)
            assert ra.OPERATIONS[name](image, level / 10, sign).tobytes() == expected.tobytes(), (level, sign)


def test_posterize_may_leave_nothing() -> None:
    assert not np.asarray(ra.OPERATIONS["posterize"](Image.new("RGB", (2, 2), (255, 255, 255)), 1.0, 1)).any()


def test_shears_leave_the_upper_left_corner() -> None:
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (0, 0, 4, 30))
    sheared = np.asarray(ra.OPERATIONS["shear_x"](image, 1.0, -1))[..., 0]
    assert sheared[0, 1] == 255
    # Nine of thirty rows' width to the right at the bottom, and grey where nothing came from.
    assert sheared[29, 8 + 2] == 255 and sheared[29, 2] == 128


def test_a_clip_gets_the_operations_of_its_frames() -> None:
    frames = torch.cat([picture(20, 30, frames=1, seed=seed) for seed in range(3)])
    for seed in range(20):
        together = ra.randaugment(frames, random.Random(seed))
        alone = [ra.randaugment(frames[i : i + 1], random.Random(seed)) for i in range(3)]
        assert (together.shape, together.dtype) == (frames.shape, torch.uint8)
        assert torch.equal(together, torch.cat(alone))


def test_randaugment_draws_every_operation_and_often_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(ra.OPERATIONS, 0)
    strengths = []

    def recorder(name: str):
        def record(image: Image.Image, strength: float, sign: int) -> Image.Image:
            counts[name] += 1
            strengths.append(strength)
            return image

        return record

    monkeypatch.setattr(ra, "OPERATIONS", {name: recorder(name) for name in ra.OPERATIONS})
    rng = random.Random(0)
    for _ in range(1500):
        ra.randaugment(picture(2, 2, frames=1), rng)
    # Four draws of one operation in fifteen, each applied half of the time: 200 expected.
    assert all(150 < count < 250 for count in counts.values())
    mean = sum(strengths) / len(strengths)
    spread = (sum((value - mean) ** 2 for value in strengths) / len(strengths)) ** 0.5
    assert mean == pytest.approx(0.7, abs=0.005)
    assert spread == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augmentation": "mixup"},
            "augmentation must be one of crop_flip, randaugment, multi_scale_crop, none, not 'mixup'",
        ),
        ({"normalize": "none"}, "normalize must be one of clip, imagenet"),
        ({"crops": 2}, "crops must be one of 1, 3, m2clip4, not 2"),
        ({"size": 0}, "size: height and width must be from 1 to 8192 pixels each"),
        ({"transform": "bicubic"}, "transform must be one of standard, authors, not 'bicubic'"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformSettings(**options)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_are_resized_as_the_weights_want(interpolation: str) -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    frames = torch.randint(0, 256, (2, 3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mode = InterpolationMode(interpolation)
    for resize, size in (("shortest", [48, 72]), ("squash", [48, 48])):
        plain = {"size": 48, "normalize": ((0,) * 3, (1,) * 3)}
        settings = TransformSettings(**plain, interpolation=interpolation, resize=resize)
        expected = F.center_crop(F.resize(frames, size, mode, antialias=True), [48, 48]).float() / 255
        assert torch.equal(EvalTransform(settings)(frames)[0], expected)
        # Several crops are parts of a frame, which is not squashed for them.
        several = EvalTransform(replace(settings, crops=3))(frames)
        assert torch.equal(several[2], F.resize(frames, [48, 72], mode, antialias=True)[..., 24:].float() / 255)


@pytest.mark.parametrize(
    "value",
    ["other", 3, ((0, 0, 0),), ((0, 0), (1, 1)), ((0, 0, 0), (1, 0, 1)), ((0, 0, math.nan), (1, 1, 1))],
)
def test_statistics_are_a_name_or_six_numbers(value: Any) -> None:
    with pytest.raises(InputError, match="normalize must be"):
        TransformSettings(normalize=value)
    assert statistics_name([[0.5] * 3, [0.5] * 3]) == "inception"
    assert statistics_name(((0.1,) * 3, (1.0,) * 3)) == "mean 0.1 0.1 0.1, deviation 1.0 1.0 1.0"
