"""The data set of clips: which frames of which video, decoded, transformed and stacked into batches."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from m2clip.data.annotations import Annotations, VideoItem
from m2clip.data.decode import READERS, Video, VideoError, open_video
from m2clip.data.isolated import open_isolated
from m2clip.data.sampling import dense_indices, uniform_indices
from m2clip.data.shards import ShardVideo
from m2clip.data.transforms import EvalTransform, TrainTransform, TransformSettings
from m2clip.errors import InputError

SAMPLINGS = ("uniform", "dense")
SHARDS_AT_ONCE = 8  # whose items are mixed by `shard_order`

# How many other videos stand in for an unreadable one: first of its class, then of any class.
_TRIES_SAME_CLASS, _TRIES_ANY_CLASS = 5, 5


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut and transformed.

    Args:
        num_frames: frames of a clip, T.
        size: height and width of the frames, in pixels.
        sampling: "uniform" (one frame of each of T segments) or "dense" (T frames at a fixed stride).
        stride: distance of the frames of a dense clip, in frames.
        reader: a reader of `m2clip.data.decode`.
        augmentation, flip, normalize, crops: as in `TransformSettings`.
        clips: test clips per video; views = clips x crops.
        isolate: decode in a child process, which a video may crash (`m2clip.data.isolated`).

    Raises:
        InputError: a choice that does not exist, or a number below 1.
    """

    num_frames: int = 8
    size: int = 224
    sampling: str = "uniform"
    stride: int = 16
    reader: str = "auto"
    augmentation: str = "crop_flip"
    flip: bool = True
    normalize: str = "clip"
    clips: int = 1
    crops: int | str = 1
    isolate: bool = False

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise InputError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {self.sampling!r}")
        if self.reader not in READERS:
            raise InputError(f"unknown video reader {self.reader!r}; choose from {', '.join(READERS)}")
        for field in ("num_frames", "stride", "clips"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, not {getattr(self, field)}")
        # Its own checks run when it is built.
        TransformSettings(self.size, self.augmentation, self.flip, self.normalize, self.crops)

    @property
    def transform(self) -> TransformSettings:
        """The part of the settings that concerns single frames."""
        return TransformSettings(self.size, self.augmentation, self.flip, self.normalize, self.crops)

    def indices(
        self, num_frames: int, *, rng: random.Random | None = None, clip: int = 0, num_clips: int = 1
    ) -> list[int]:
        """Frame indices of one clip of a video of `num_frames` frames; arguments as in `m2clip.data.sampling`."""
        if self.sampling == "uniform":
            return uniform_indices(num_frames, self.num_frames, rng=rng, clip=clip, num_clips=num_clips)
        return dense_indices(num_frames, self.num_frames, self.stride, rng=rng, clip=clip, num_clips=num_clips)


def load_views(video: VideoItem | str | Path, settings: ClipSettings, rng: random.Random | None = None) -> Tensor:
    """All test views of a video, (clips * crops, T, 3, size, size), the crops of a clip adjacent.

    Args:
        video: the video, or its file.
        settings: how clips are cut and transformed.
        rng: source of random frames, as in training; None takes those of testing.

    Raises:
        VideoError: the video cannot be read.
    """
    item = video if isinstance(video, VideoItem) else VideoItem(Path(video), 0)
    transform = EvalTransform(settings.transform)
    with _open(item, settings) as opened:
        wanted = [
            index
            for clip in range(settings.clips)
            for index in settings.indices(opened.num_frames, rng=rng, clip=clip, num_clips=settings.clips)
        ]
        frames = opened.read(wanted)
    return torch.cat([transform(clip) for clip in frames.split(settings.num_frames)])


class ClipDataset(Dataset[dict[str, Any]]):
    """Labelled clips of a list of videos.

    A training item is {"video": float (T, 3, size, size), "label": int, "index": int, "replaced": None or dict}. An
    unreadable video is replaced by another of its class; "replaced" then holds the path, the error and the replacement.
    An evaluation item is {"video": float (views, T, 3, size, size), "label", "index", "error": None or str}; the video
    of an unreadable file is zeros.

    An item is addressed by (epoch, index), or by the index alone for epoch 0. All random choices come from
    (seed, epoch, index), so an item is the same in any worker and after a restart.

    Args:
        annotations: the videos.
        settings: how clips are cut and transformed.
        training: random clips with augmentation, or test views.
        seed: of all random choices.
    """

    def __init__(
        self, annotations: Annotations, settings: ClipSettings, *, training: bool = False, seed: int = 0
    ) -> None:
        self.annotations, self.settings, self.training, self.seed = annotations, settings, training, seed
        self._augment = TrainTransform(settings.transform)
        self._by_label: dict[int, list[int]] = {}
        for index, item in enumerate(annotations.items):
            self._by_label.setdefault(item.label, []).append(index)

    def __len__(self) -> int:
        return len(self.annotations.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self._training_item(epoch, index) if self.training else self._evaluation_item(index)

    def _evaluation_item(self, index: int) -> dict[str, Any]:
        settings, item = self.settings, self.annotations.items[index]
        error = None
        try:
            video = load_views(item, settings)
        except VideoError as problem:
            views = settings.clips * EvalTransform(settings.transform).num_crops
            video, error = torch.zeros(views, settings.num_frames, 3, settings.size, settings.size), str(problem)
        return {"video": video, "label": item.label, "index": index, "error": error}

    def _training_item(self, epoch: int, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        item, replaced = self.annotations.items[index], None
        try:
            video = self._random_clip(item, rng)
        except VideoError as problem:
            item, video = self._replacement(index, rng, str(problem))
            replaced = {
                "path": str(self.annotations.items[index].path),
                "error": str(problem),
                "replaced_by": str(item.path),
            }
        return {"video": video, "label": item.label, "index": index, "replaced": replaced}

    def _random_clip(self, item: VideoItem, rng: random.Random) -> Tensor:
        with _open(item, self.settings) as opened:
            frames = opened.read(self.settings.indices(opened.num_frames, rng=rng))
        return self._augment(frames, rng.getrandbits(62))

    def _replacement(self, index: int, rng: random.Random, problem: str) -> tuple[VideoItem, Tensor]:
        tried = {index}
        same_class = self._by_label[self.annotations.items[index].label]
        for pool, tries in ((same_class, _TRIES_SAME_CLASS), (range(len(self)), _TRIES_ANY_CLASS)):
            # A few more than needed are drawn, since some may have been tried before.
            candidates = rng.sample(pool, min(tries + len(tried), len(pool)))
            for candidate in [other for other in candidates if other not in tried][:tries]:
                tried.add(candidate)
                item = self.annotations.items[candidate]
                try:
                    return item, self._random_clip(item, rng)
                except VideoError:
                    continue
        raise InputError(
            f"{self.annotations.source}: {len(tried)} videos in a row cannot be read; check the root folder ({problem})"
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs of one process for one epoch, to be resumed anywhere.

    Process r takes every world_size-th index from r on. Nothing is padded: without `drop_last` the processes together
    see every index exactly once, and their counts may differ by one.

    Args:
        length: number of items of the data set.
        seed, epoch: of the order; all processes must agree on them.
        shuffle: random order, or ascending.
        shards: where each item is stored; if given, a random order takes items of a few shards at a time (see
            `shard_order`).
        rank, world_size: this process and the number of processes.
        start: samples of this process that were already consumed in this epoch.
        drop_last: drop the last length % world_size items of the order, so that all processes have equally many.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        shards: Sequence[Hashable] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of 0 to {world_size - 1}, not {rank}")
        self.length, self.seed, self.epoch, self.shuffle, self.shards = length, seed, epoch, shuffle, shards
        self.rank, self.world_size, self.start, self.drop_last = rank, world_size, start, drop_last

    def _positions(self) -> range:
        used = self.length - self.length % self.world_size if self.drop_last else self.length
        return range(self.rank, used, self.world_size)[self.start :]

    def __len__(self) -> int:
        return len(self._positions())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = list(range(self.length))
        rng = random.Random(f"{self.seed}/{self.epoch}")
        if self.shuffle and self.shards is not None:
            order = shard_order(self.shards, rng)
        elif self.shuffle:
            rng.shuffle(order)
        return iter([(self.epoch, order[position]) for position in self._positions()])


def shard_order(shards: Sequence[Hashable], rng: random.Random) -> list[int]:
    """All indices in a random order that comes from a few shards at a time, for disks that are slow to seek.

    The shards are shuffled, and then the items of each few of them that follow each other.

    Args:
        shards: the shard of each item.
        rng: of the order.
    """
    members: dict[Hashable, list[int]] = {}
    for index, shard in enumerate(shards):
        members.setdefault(shard, []).append(index)
    groups = list(members.values())
    rng.shuffle(groups)
    order: list[int] = []
    for start in range(0, len(groups), SHARDS_AT_ONCE):
        window = [index for group in groups[start : start + SHARDS_AT_ONCE] for index in group]
        rng.shuffle(window)
        order += window
    return order


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: "video" stacked, "label" and "index" int64 (B,), "replaced" or "errors" as a list of length B."""
    batch: dict[str, Any] = {
        "video": torch.stack([item["video"] for item in items]),
        "label": torch.tensor([item["label"] for item in items], dtype=torch.int64),
        "index": torch.tensor([item["index"] for item in items], dtype=torch.int64),
    }
    if "replaced" in items[0]:
        batch["replaced"] = [item["replaced"] for item in items]
    else:
        batch["errors"] = [item["error"] for item in items]
    return batch


def _open(item: VideoItem, settings: ClipSettings) -> Video:
    if item.sample is not None:
        if settings.sampling == "dense" and not item.sample.every_frame:
            raise InputError(
                f"{item.sample.shard.parent}: holds some frames of a video only, too few for clips at a stride: use "
                "sampling uniform, or pack again with --frames all"
            )
        return ShardVideo(item.path, item.sample)
    reader = "frames" if item.pattern is not None else settings.reader
    opener = open_isolated if settings.isolate else open_video
    return opener(item.path, reader, pattern=item.pattern, num_frames=item.num_frames)
