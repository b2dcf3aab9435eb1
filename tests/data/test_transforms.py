"""Transforms: sizes, crop positions, one set of random parameters a clip, and nothing random but the seed."""

import random

import pytest
import torch

from m2clip.data import multi_scale
from m2clip.data import randaugment as ra
from m2clip.data.transforms import AUGMENTATIONS, NORMALIZATION, EvalTransform, TrainTransform, TransformSettings
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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("shape", [(64, 64), (64, 100), (31, 77), (200, 64)])
def test_training_size_from_any_shape(augmentation: str, size: int, shape: tuple[int, int]) -> None:
    transform = TrainTransform(TransformSettings(size=size, augmentation=augmentation))
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


@pytest.mark.parametrize(("name", "mean", "std"), [("clip", 0.48145466, 0.26862954), ("imagenet", 0.485, 0.229)])
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
        crop = multi_scale.multi_scale_crop(frames, 300, False, rng)[0, :2].int()
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


def test_randaugment_operations() -> None:
    assert len(ra._OPERATIONS) == 15
    frames = picture(40, 56)
    for name, operation in ra._OPERATIONS.items():
        changed = operation(frames, 0.7, 1)
        assert (changed.shape, changed.dtype) == (frames.shape, torch.uint8), name
        assert not torch.equal(changed, frames), name


def test_randaugment_operation_values() -> None:
    levels = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 3, 4, 4)
    row = {name: ra._OPERATIONS[name](levels, 0.5, 1)[0, 0, 0].tolist() for name in ra._OPERATIONS}
    assert row["invert"] == [255, 155, 55, 0]
    # Strength 0.5 keeps 4 - 2 bits, inverts from 128 on, and adds 55 to the dark half.
    assert row["posterize"] == [0, 64, 192, 192]
    assert row["solarize"] == [0, 100, 55, 0]
    assert row["solarize_add"] == [55, 155, 200, 255]
    assert row["brightness"] == [0, 145, 255, 255]


def test_translation_directions_and_reach() -> None:
    frames = torch.zeros(1, 3, 20, 40, dtype=torch.uint8)
    frames[..., 10, 20] = 255
    right = ra._OPERATIONS["translate_x"](frames, 1.0, 1)
    up = ra._OPERATIONS["translate_y"](frames, 1.0, -1)
    # 45 % of the extent: 18 columns to the right, 9 rows up; uncovered pixels are grey.
    assert right[0, 0, 10, 38] == 255
    assert right[0, 0, 0, 0] == 128
    assert up[0, 0, 1, 20] == 255


def test_randaugment_draws_every_operation_and_often_none(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(ra._OPERATIONS, 0)
    strengths = []

    def recorder(name: str):
        def record(frames: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
            counts[name] += 1
            strengths.append(strength)
            return frames

        return record

    monkeypatch.setattr(ra, "_OPERATIONS", {name: recorder(name) for name in ra._OPERATIONS})
    rng = random.Random(0)
    for _ in range(1500):
        ra.randaugment(torch.zeros(1), rng)
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
        ({"size": 0}, "size must be at least 1 pixel"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformSettings(**options)
