"""The data set of clips: which frames of which video, decoded, transformed and stacked into batches."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from m2clip.config_fields import DataConfig, EvalConfig, deciding, same
from m2clip.data.lists.annotations import Annotations, VideoItem
from m2clip.data.packs.frames import ShardVideo
from m2clip.data.sampling import SAMPLINGS, dense_centre_indices, dense_indices, uniform_indices
from m2clip.data.transforms import EvalTransform, Statistics, TrainTransform, TransformSettings
from m2clip.data.video.base import TOGETHER, stack
from m2clip.data.video.isolated import open_isolated
from m2clip.data.video.readers import Video, VideoError, check_reader, open_video
from m2clip.errors import InputError
from m2clip.sizes import Size, sides

_BATCH_BYTES = 4 << 20  # of frames that are transformed at once, where that is more than one
SHARDS_AT_ONCE = 8  # whose items are mixed by `shard_order`

# How many other videos stand in for an unreadable one: first of its class, then of any class.
_TRIES_SAME_CLASS, _TRIES_ANY_CLASS = 5, 5


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut and transformed.

    Args:
        num_frames: frames of a clip, T.
        size: of the frames, as in `TransformSettings`.
        sampling: "uniform" (one frame of each of T segments), "dense" (T frames at a fixed stride) or "dense_centres"
            (likewise, test clips in the middle of equal parts), see `m2clip.data.sampling`.
        stride: distance of the frames of a dense clip, in frames.
        reader: a reader of `m2clip.data.video.readers`.
        augmentation: as in `TransformSettings`.
        flip: as in `TransformSettings`.
        normalize: as in `TransformSettings`.
        crops: as in `TransformSettings`.
        transform: as in `TransformSettings`; "authors" also takes the frames of short videos as their code does.
        interpolation: as in `TransformSettings`.
        resize: as in `TransformSettings`.
        clips: test clips per video; views = clips x crops.
        isolate: decode in a child process, which a video may crash (`m2clip.data.video.isolated`).

    Raises:
        InputError: a choice that does not exist, or a number below 1.
    """

    num_frames: int = same(DataConfig, "num_frames")
    size: Size = same(TransformSettings, "size")
    sampling: str = same(DataConfig, "sampling")
    stride: int = same(DataConfig, "stride")
    reader: str = same(DataConfig, "reader")
    augmentation: str = same(TransformSettings, "augmentation")
    flip: bool = same(TransformSettings, "flip")
    normalize: str | Statistics = same(TransformSettings, "normalize")
    clips: int = same(EvalConfig, "clips")
    crops: int | str = same(TransformSettings, "crops")
    isolate: bool = same(DataConfig, "isolate")
    transform: str = same(TransformSettings, "transform")
    interpolation: str = same(TransformSettings, "interpolation")
    resize: str = same(TransformSettings, "resize")

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise InputError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {self.sampling!r}")
        check_reader(self.reader)
        for field in ("num_frames", "stride", "clips"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, not {getattr(self, field)}")
        # Whose own checks run when they are built.
        for field in ("size", "normalize"):
            object.__setattr__(self, field, getattr(self.of_frames, field))

    @property
    def of_frames(self) -> TransformSettings:
        """The part of the settings that concerns single frames."""
        return TransformSettings(**{entry.name: getattr(self, entry.name) for entry in fields(TransformSettings)})

    @property
    def views(self) -> dict[str, Any]:
        """What decides which pictures of a video a model is shown in testing, beside its frames and their size."""
        return deciding(self, "views")

    def indices(
        self, num_frames: int, *, rng: random.Random | None = None, clip: int = 0, num_clips: int = 1
    ) -> list[int]:
        """Frame indices of one clip of a video of `num_frames` frames; arguments as in `m2clip.data.sampling`."""
        which: dict[str, Any] = {"rng": rng, "clip": clip, "num_clips": num_clips}
        if self.sampling == "dense_centres":
            return dense_centre_indices(num_frames, self.num_frames, self.stride, **which)
        which["authors"] = self.transform == "authors"
        if self.sampling == "uniform":
            return uniform_indices(num_frames, self.num_frames, **which)
        return dense_indices(num_frames, self.num_frames, self.stride, **which)


def load_views(
    video: VideoItem | str | Path, settings: ClipSettings, rng: random.Random | None = None, *, pixels: bool = False
) -> Tensor:
    """All test views of a video, (clips * crops, T, 3, height, width), the crops of a clip adjacent.

    Args:
        video: the video, or its file.
        settings: how clips are cut and transformed.
        rng: source of random frames, as in training; None takes those of testing.
        pixels: leave the last step, `m2clip.data.transforms.normalized`, to the caller: the views are then uint8, a
            quarter of the memory, except by the authors' transform, whose first step it is.

    Raises:
        VideoError: the video cannot be read.
    """
    item = video if isinstance(video, VideoItem) else VideoItem(Path(video), 0)
    with open_item(item, settings) as opened:
        return views_of(opened, settings, rng, pixels=pixels)


def views_of(video: Video, settings: ClipSettings, rng: random.Random | None = None, *, pixels: bool = False) -> Tensor:
    """All test views of an open video; the rest as for `load_views`."""
    transform, length = EvalTransform(settings.of_frames), settings.num_frames
    cut = transform.cut if pixels else transform
    kind = torch.uint8 if pixels and settings.transform == "standard" else torch.float32
    views = torch.empty(settings.clips, transform.num_crops, length, 3, *sides(settings.size), dtype=kind)
    # Where in which clips a frame is: clips may overlap.
    places: dict[int, list[tuple[int, int]]] = {}
    for clip in range(settings.clips):
        indices = settings.indices(video.num_frames, rng=rng, clip=clip, num_clips=settings.clips)
        for step, index in enumerate(indices):
            places.setdefault(index, []).append((clip, step))
    for some, frames in batches_of_frames(video.each(list(places))):
        for index, crops in zip(some, cut(frames).unbind(1), strict=True):
            for clip, step in places[index]:
                views[clip, :, step] = crops
    return views.flatten(0, 1)


def batches_of_frames(frames: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[list[int], Tensor]]:
    """Frames of one size, a few at a time: their indices and (n, 3, H, W) uint8."""
    some: list[tuple[int, np.ndarray]] = []
    for index, frame in frames:
        full = len(some) == TOGETHER or len(some) * frame.nbytes > _BATCH_BYTES
        if some and (full or some[0][1].shape != frame.shape):
            yield [index for index, _ in some], torch.from_numpy(stack([frame for _, frame in some]))
            some = []
        some.append((index, frame))
    yield [index for index, _ in some], torch.from_numpy(stack([frame for _, frame in some]))


class ClipDataset(Dataset[dict[str, Any]]):
    """Labelled clips of a list of videos.

    A training item is {"video": float (T, 3, height, width), "label": int, "index": int, "replaced": None or dict}. An
    unreadable video is replaced by another of its class; "replaced" then holds the path, the error and the replacement.
    An evaluation item is {"video": float (views, T, 3, height, width), "label", "index", "error": None or str}; the
    video of an unreadable file is zeros.

    An item is addressed by (epoch, index), or by the index alone for epoch 0; (epoch, index, n) is the n-th repetition
    of a video in an epoch. All random choices come from the seed and this address, so an item is the same in any worker
    and after a restart.

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
        self._augment = TrainTransform(settings.of_frames)
        self._by_label: dict[int, list[int]] = {}
        for index, item in enumerate(annotations.items):
            self._by_label.setdefault(item.label, []).append(index)

    def __len__(self) -> int:
        return len(self.annotations.items)

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        epoch, index, *repetition = key if isinstance(key, tuple) else (0, key)
        return self._training_item(epoch, index, *repetition) if self.training else self._evaluation_item(index)

    def _evaluation_item(self, index: int) -> dict[str, Any]:
        settings, item = self.settings, self.annotations.items[index]
        error = None
        try:
            video = load_views(item, settings)
        except VideoError as problem:
            views = settings.clips * EvalTransform(settings.of_frames).num_crops
            video, error = torch.zeros(views, settings.num_frames, 3, *sides(settings.size)), str(problem)
        return {"video": video, "label": item.label, "index": index, "error": error}

    def _training_item(self, *address: int) -> dict[str, Any]:
        index, rng = address[1], random.Random("/".join(map(str, (self.seed, *address))))
        item, replaced = self.annotations.items[index], None
        try:
            video = self._random_clip(item, rng)
        except VideoError as problem:
            item, video = self._replacement(index, rng, str(problem))
            replaced = {
                "path": self.annotations.items[index].name,
                "error": str(problem),
                "replaced_by": item.name,
            }
        return {"video": video, "label": item.label, "index": index, "replaced": replaced}

    def _random_clip(self, item: VideoItem, rng: random.Random) -> Tensor:
        with open_item(item, self.settings) as opened:
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


class EpochSampler(Sampler[tuple[int, ...]]):
    """Addresses (epoch, index) of the items of one process for one epoch, to be resumed anywhere.

    Process r takes every world_size-th index from r on. Nothing is padded: without `drop_last` the processes together
    see every index exactly once, and their counts may differ by one.

    Args:
        length: number of items of the data set.
        seed: of the order; all processes must agree on it.
        epoch: of the order; all processes must agree on it.
        shuffle: random order, or ascending.
        shards: where each item is stored; if given, a random order takes items of a few shards at a time (see
            `shard_order`).
        repeat: passes over all items in one epoch, each in an order and with epoch numbers of its own.
        classes: the class of each item; if given, a random order draws equally many of each (see `balanced_order`).
        root: as in `balanced_order`.
        rank: this process.
        world_size: number of processes.
        start: samples of this process that were already consumed in this epoch.
        drop_last: drop the last items of the order that not all processes would have.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        shards: Sequence[Hashable] | None = None,
        repeat: int = 1,
        classes: Sequence[int] | None = None,
        root: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of 0 to {world_size - 1}, not {rank}")
        self.length, self.seed, self.epoch, self.shuffle, self.shards = length, seed, epoch, shuffle, shards
        self.repeat = repeat
        self.classes, self.root = classes, root
        self.rank, self.world_size, self.start, self.drop_last = rank, world_size, start, drop_last

    def _positions(self) -> range:
        length = self.length * self.repeat
        used = length - length % self.world_size if self.drop_last else length
        return range(self.rank, used, self.world_size)[self.start :]

    def __len__(self) -> int:
        return len(self._positions())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        first = self.epoch * self.repeat
        passes = [self._order(first + number) for number in range(self.repeat)]
        places = (divmod(position, self.length) for position in self._positions())
        return iter([(first + number, *passes[number][place]) for number, place in places])

    def _order(self, number: int) -> list[tuple[int, ...]]:
        """All items as one pass takes them, without the pass's number."""
        order: list[tuple[int, ...]] = [(index,) for index in range(self.length)]
        rng = random.Random(f"{self.seed}/{number}")
        if self.shuffle and self.shards is not None:
            order = [(index,) for index in shard_order(self.shards, rng)]
        elif self.shuffle and self.classes is not None:
            order = balanced_order(self.classes, rng, root=self.root)
        elif self.shuffle:
            rng.shuffle(order)
        return order


def balanced_order(classes: Sequence[int], rng: random.Random, *, root: bool = False) -> list[tuple[int, ...]]:
    """As many draws as there are items, in a random order: equally many of each class, to within one.

    A large class is left with some of its items, others each epoch; those of a small class come again and again, and no
    item of a class a second time more often than another.

    Args:
        classes: the class of each item.
        rng: of the draws and their order.
        root: in proportion to the square roots of the classes' numbers of items, between equal and as they are.

    Returns:
        (index,) of each draw, and (index, n) of the n-th repetition of an item.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(classes):
        members.setdefault(label, []).append(index)
    groups = list(members.values())
    rng.shuffle(groups)  # which of them are rounded up
    weights = [len(group) ** 0.5 if root else 1.0 for group in groups]
    shares = [len(classes) * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    nearest = sorted(range(len(groups)), key=lambda number: counts[number] - shares[number])
    for number in nearest[: len(classes) - sum(counts)]:
        counts[number] += 1
    order: list[tuple[int, ...]] = []
    for group, count in zip(groups, counts, strict=True):
        for repetition in range(-(-count // len(group))):
            some = rng.sample(group, min(len(group), count - repetition * len(group)))
            order += [(index, repetition) if repetition else (index,) for index in some]
    rng.shuffle(order)
    return order


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


def open_item(item: VideoItem, settings: ClipSettings) -> Video:
    """A video of a list, open, by the reader of the settings; errors as for `open_video`."""
    if item.sample is not None:
        if settings.sampling != "uniform" and not item.sample.every_frame:
            raise InputError(
                f"{item.sample.shard.parent}: holds some frames of a video only, too few for clips at a stride: use "
                "sampling uniform, or pack again with --frames all"
            )
        return ShardVideo(item.path, item.sample)
    opener = open_isolated if settings.isolate else open_video
    return opener(item.path, settings.reader, pattern=item.pattern, num_frames=item.num_frames, segment=item.segment)
