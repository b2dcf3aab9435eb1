"""Sizes of (height, width): frames keep their aspect and cover them, with the values of torchvision's own functions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from m2clip.data import transforms
from m2clip.data.boxes import covering, largest_within
from m2clip.data.clips import ClipDataset, ClipSettings, load_views
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.memory import FrameTransform
from m2clip.data.multi_scale import multi_scale_crop
from m2clip.data.packs.pack import pack
from m2clip.data.transforms import AUGMENTATIONS, TRANSFORMS, EvalTransform, TrainTransform, TransformSettings
from m2clip.errors import InputError
from tests.data.video_files import write_video

PLAIN = ((0.0,) * 3, (1.0,) * 3)
BOXES = [(32, 48), (48, 32), (24, 96)]


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def coordinates(height: int, width: int) -> torch.Tensor:
    """Frames whose red is the row and whose green is the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).to(torch.uint8)[None]


@pytest.mark.parametrize(
    ("extents", "box", "nearest", "down"),
    [
        ((240, 320), (224, 320), (240, 320), (240, 320)),
        ((240, 426), (224, 320), (224, 398), (224, 397)),  # 397.6
        ((426, 240), (224, 320), (568, 320), (568, 320)),
        ((100, 100), (32, 48), (48, 48), (48, 48)),
        ((90, 161), (24, 96), (54, 96), (53, 96)),  # 53.66
    ],
)
def test_the_smallest_size_that_covers(extents: Any, box: Any, nearest: Any, down: Any) -> None:
    assert covering(extents, box) == nearest
    assert covering(extents, box, down=True) == down


def test_the_largest_box_within_frames() -> None:
    assert largest_within((240, 426), (224, 320)) == (240, 240 * 320 / 224)
    assert largest_within((426, 240), (224, 320)) == (168, 240)
    assert largest_within((90, 160), (48, 48)) == (90, 90)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(54, 96), (90, 60), (64, 64)])
def test_test_crops_of_a_wide_size(shape: tuple[int, int], box: tuple[int, int]) -> None:
    frames = noise(*shape)
    scale = max(box[0] / shape[0], box[1] / shape[1])
    resized = F.resize(frames, [round(shape[0] * scale), round(shape[1] * scale)], antialias=True)
    down, across = resized.shape[-2] - box[0], resized.shape[-1] - box[1]
    assert down == 0 or across == 0
    places = {1: [(down // 2, across // 2)], 3: [(0, 0), (down // 2, across // 2), (down, across)]}
    for crops, starts in places.items():
        views = EvalTransform(TransformSettings(size=box, crops=crops, normalize=PLAIN))(frames)
        expected = [F.crop(resized, top, left, *box).float() / 255 for top, left in starts]
        assert torch.equal(views, torch.stack(expected))
    squashed = EvalTransform(TransformSettings(size=box, resize="squash", normalize=PLAIN))(frames)[0]
    assert torch.equal(squashed, F.resize(frames, list(box), antialias=True).float() / 255)


def test_the_authors_way_of_a_wide_size() -> None:
    frames = noise(54, 97)
    views = EvalTransform(TransformSettings(size=(32, 48), crops=3, transform="authors", normalize=PLAIN))(frames)
    resized = torch.nn.functional.interpolate(frames.float() / 255, (32, 57), mode="bicubic", align_corners=False)
    assert torch.equal(views, torch.stack([resized[..., left : left + 48] for left in (0, 4, 9)]))


@pytest.mark.parametrize("box", BOXES)
def test_crop_flip_of_a_wide_size(box: tuple[int, int]) -> None:
    frames = noise(54, 97)
    transform = TrainTransform(TransformSettings(size=box, normalize=PLAIN))
    for seed in range(6):
        rng = random.Random(seed)
        factor = rng.uniform(1.0, 1.15)
        larger = [round(side * factor) for side in box]
        scale = max(larger[0] / 54, larger[1] / 97)
        resized = F.resize(frames, [round(54 * scale), round(97 * scale)], antialias=True)
        place = [rng.randint(0, extent - side) for extent, side in zip(resized.shape[-2:], box, strict=True)]
        expected = F.crop(resized, *place, *box)
        expected = F.hflip(expected) if rng.random() < 0.5 else expected
        assert torch.equal(transform(frames, seed), expected.float() / 255)


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_training_size_from_any_shape(augmentation: str, kind: str) -> None:
    transform = TrainTransform(TransformSettings(size=(24, 40), augmentation=augmentation, transform=kind))
    for seed, shape in enumerate([(64, 64), (24, 40), (31, 77), (100, 40), (20, 30)]):
        video = transform(noise(*shape), seed)
        assert video.shape == (2, 3, 24, 40) and video.isfinite().all()


def test_random_crops_have_the_aspect_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "randaugment", lambda frames, rng: frames)
    transform = TrainTransform(
        TransformSettings(size=(100, 200), augmentation="randaugment", normalize=PLAIN, interpolation="bilinear")
    )
    frames, ratios, shares = coordinates(100, 200), [], []
    for seed in range(200):
        red, green = transform(frames, seed)[0, :2] * 255
        height, width = red[-1, 0] - red[0, 0] + 1, green[0, -1] - green[0, 0] + 1
        ratios.append(float(width / height) / 2)
        shares.append(float(width * height) / 20_000)
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.43
    assert 0.06 < min(shares) < 0.15 and max(shares) > 0.85


def test_multi_scale_crops_of_a_wide_size() -> None:
    rng, seen = random.Random(0), set()
    for _ in range(600):
        # Enlarged, a crop's first and last pixels tell where it began and ended.
        crop = multi_scale_crop(coordinates(100, 240), (150, 300), False, rng)[0, :2].int()
        seen.add((*crop[:, 0, 0].tolist(), *crop[:, -1, -1].tolist()))
    scales, expected = (1.0, 0.875, 0.75, 0.66), set()
    for i, high in enumerate(scales):
        for wide in scales[max(i - 1, 0) : i + 2]:
            height, width = int(100 * high), int(200 * wide)
            down, right = 100 - height, 240 - width
            places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
            expected |= {(top, left, top + height - 1, left + width - 1) for top, left in places}
    assert seen == expected


def test_clips_and_packs_of_a_wide_size(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_video(tmp_path / "videos" / name / "0.mp4", num_frames=6 + number, size=(96, 54))
    videos, settings = load_annotations(tmp_path / "videos"), ClipSettings(num_frames=2, size=(32, 48), crops=3)
    views = load_views(videos.items[0], settings)
    assert views.shape == (3, 2, 3, 32, 48)
    assert not torch.equal(views[0], views[2])  # of 57 columns they begin at 0, 4 and 9
    pack(videos, tmp_path / "packed", workers=1)
    packed = load_annotations(tmp_path / "packed")
    stored = next(item for item in packed.items if item.label == videos.items[0].label)
    assert (load_views(stored, settings) - views).abs().mean() < 0.1  # JPEG
    (tmp_path / "videos" / "a" / "0.mp4").write_bytes(b"")
    assert ClipDataset(videos, settings)[0]["video"].shape == (3, 2, 3, 32, 48)
    training = ClipDataset(videos, settings, training=True)[1]["video"]
    assert training.shape == (2, 3, 32, 48)
    assert "32x48 pixels" in repr(FrameTransform(settings))


def test_one_size_has_one_form() -> None:
    sizes: list[Any] = [48, "48", (48, 48), [48, 48], "48x48"]
    assert {ClipSettings(size=size).size for size in sizes} == {48}
    assert ClipSettings(size=[32, 48]) == ClipSettings(size="32x48") == ClipSettings(size=(32, 48))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, (0, 48), (32, 48, 3), (), "32x", "x32", "32 x 48", 32.0, True, None, 10_000])
def test_bad_sizes(size: Any) -> None:
    with pytest.raises(InputError, match=r"^size.*(write one number, or height and width|from 1 to 8192 pixels)"):
        TransformSettings(size=size)
