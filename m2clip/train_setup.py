"""What a training run is made of: lists, datasets, model, seeds, and its identity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2clip import distributed
from m2clip.config import ModelConfig, RunConfig, flatten
from m2clip.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from m2clip.data.annotations import Annotations
    from m2clip.data.clips import ClipDataset, ClipSettings
    from m2clip.data.episodes import EpisodeShape
    from m2clip.methods import VideoModel

# What a resumed run may change, because it does not change what training computes.
_FREE = (
    *("data.train", "data.train_split", "data.val", "data.val_split", "data.root", "data.format", "data.classes"),
    *("data.workers", "data.reader", "data.isolate", "data.timeout", "output"),
    *("eval.clips", "eval.crops", "eval.on_error", "eval.batch_size"),
    *("optim.compile", "optim.cuda_graph"),
    *(f"episodes.{name}" for name in ("val_episodes", "val_shots", "val_classes", "select_by")),
    *("episodes.test", "episodes.test_split", "episodes.test_classes"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "validate_every", "keep", "timeout", "model.pretrained"),
)


class LossModule(nn.Module):
    """What DistributedDataParallel wraps: a module whose forward pass is the model's loss."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, labels: Tensor, *drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.model.loss(video, labels, drawn=drawn)
        return loss.total, loss.parts


def mix_seeds(*numbers: int) -> int:
    """One seed of 63 bits from several whole numbers, unrelated for neighbouring ones."""
    import numpy

    return int(numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, numpy and Python."""
    import numpy

    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that other libraries draw from
    random.seed(seed)


def training_list(config: RunConfig) -> tuple[Annotations, list[str]]:
    """The training videos and the class names.

    Raises:
        InputError: no list given, a bad list, no class names.
    """
    if config.data.train is None:
        raise InputError(
            "data.train is not set: give a list of training videos or a folder with one sub-folder a class"
        )
    annotations = _annotations(config, config.data.train, config.data.train_split, config.data.classes)
    if annotations.class_names is None:
        raise InputError(
            f"{config.data.train} gives class numbers but no names: set data.classes to a label set or a class file"
        )
    return annotations, list(annotations.class_names)


def clip_settings(config: RunConfig, image_size: tuple[int, int]) -> ClipSettings:
    """How clips are drawn and prepared for a model that takes images of this (height, width), in pixels."""
    from m2clip.data.clips import ClipSettings

    data = config.data
    return ClipSettings(
        num_frames=data.num_frames,
        sampling=data.sampling,
        stride=data.stride,
        clips=config.eval.clips,
        reader=data.reader,
        isolate=data.isolate,
        size=image_size[0],
        augmentation=data.augmentation,
        flip=data.flip,
        normalize=data.normalize,
        crops=config.eval.crops,
    )


def episode_shape(config: RunConfig) -> EpisodeShape | None:
    """Shape of the episodes of training; None where training is not by episodes."""
    from m2clip.data.episodes import EpisodeShape

    chosen = config.episodes
    return EpisodeShape(chosen.way, chosen.shots, chosen.queries) if chosen.train else None


def clips_per_pass(config: RunConfig) -> int:
    """Clips of one process in one forward pass of training."""
    shape = episode_shape(config)
    return config.optim.batch_size if shape is None else shape.videos


def datasets(
    config: RunConfig, annotations: Annotations, class_names: Sequence[str], image_size: tuple[int, int]
) -> tuple[ClipDataset, ClipDataset | None]:
    """Training clips, and the views of the validation videos where there are any.

    In training by episodes these are `EpisodeClips`, whose items are whole batches, and `EpisodeVideos` of other
    classes than those of training.

    Raises:
        InputError: a bad validation list; too few classes or videos for an episode.
    """
    from m2clip.data.clips import ClipDataset
    from m2clip.data.episode_clips import EpisodeClips, EpisodeVideos

    settings = clip_settings(config, image_size)
    shape = episode_shape(config)
    if shape is not None:
        val = _validation_classes(config, class_names)
        episodes = EpisodeClips(annotations, settings, shape, config.episodes.per_epoch, seed=config.seed)
        return episodes, None if val is None else EpisodeVideos(val, settings)
    train = ClipDataset(annotations, settings, training=True, seed=config.seed)
    if config.data.val is None:
        return train, None
    val = _annotations(config, config.data.val, config.data.val_split, list(class_names))
    return train, ClipDataset(val, settings, training=False, seed=config.seed)


def _validation_classes(config: RunConfig, trained: Sequence[str]) -> Annotations | None:
    """The videos that weights are chosen by in training by episodes: of classes that are not trained on."""
    from m2clip.data.episodes import EpisodeShape, class_videos
    from m2clip.data.label_sets import match_key

    chosen = config.episodes
    places = {
        "val": (config.data.val, config.data.val_split, chosen.val_classes),
        "test": (chosen.test, chosen.test_split, chosen.test_classes),
    }
    path, split, classes = places[chosen.select_by]
    if path is None:
        return None
    found = _annotations(config, path, split, classes)
    if found.class_names is None:
        raise InputError(
            f"{path} gives class numbers but no names: set episodes.{chosen.select_by}_classes to a label set or a "
            "class file"
        )
    keys = {match_key(name) for name in trained}
    both = next((name for name in found.class_names if match_key(name) in keys), None)
    if both is not None:
        raise InputError(
            f"class {both!r} of {path} is trained on, too: episodes of validation are of other classes than those of "
            "training"
        )
    class_videos(found, EpisodeShape(chosen.way, chosen.val_shots))
    return found


def batches_per_epoch(config: RunConfig, dataset: ClipDataset) -> int:
    """Forward passes of one process in an epoch.

    Raises:
        InputError: less than one.
    """
    processes, batch = distributed.world_size(), config.optim.batch_size
    if config.episodes.train:
        if len(dataset) < processes:
            raise InputError(
                f"episodes.per_epoch is {len(dataset)}, fewer than the {processes} processes: each of them needs one"
            )
        return len(dataset) // processes
    if len(dataset) // processes < batch:
        raise InputError(
            f"{config.data.train} lists {len(dataset)} videos, fewer than optim.batch_size x processes "
            f"({batch} x {processes}): use a smaller optim.batch_size"
        )
    return len(dataset) // processes // batch


def epoch_batches(
    config: RunConfig,
    dataset: ClipDataset,
    device: torch.device,
    epoch: int,
    done: int,
    say: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """What an epoch has left after so many batches of each process, in this process's share; all of one size.

    Args:
        config: the run.
        dataset: of training (`datasets`).
        device: where batches go to.
        epoch: epochs finished.
        done: batches of this process used up in this epoch.
        say: receives a line where decoding processes died; None writes it to standard error.

    Raises:
        InputError: a video that cannot be read and has no replacement, or that decoding has died of three times.
    """
    from m2clip.data.clips import EpochSampler, collate
    from m2clip.data.loading import load

    # An episode is drawn by its number, and comes as a batch.
    episodes, size = config.episodes.train, config.optim.batch_size
    sampler = EpochSampler(
        len(dataset),
        seed=config.seed,
        epoch=epoch,
        shuffle=not episodes,
        shards=_shards(config, dataset),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start=done if episodes else done * size,
        drop_last=True,
    )
    order = list(sampler)
    return load(
        dataset,
        order if episodes else [order[first : first + size] for first in range(0, len(order) - size + 1, size)],
        workers=config.data.workers,
        collate=None if episodes else collate,
        pin_memory=device.type == "cuda",
        timeout=config.data.timeout,
        **({} if say is None else {"say": say}),
    )


def _shards(config: RunConfig, dataset: ClipDataset) -> list[Path] | None:
    """The shard of each video, where the order of training goes by them."""
    if config.data.shuffle == "full":
        return None
    samples = [item.sample for item in dataset.annotations.items]
    shards = [sample.shard for sample in samples if sample is not None]
    if len(shards) < len(samples) or config.episodes.train:
        raise InputError(
            "data.shuffle=shards is for clips from the shards of m2clip pack, not for files or episodes: leave it out"
        )
    return shards


def base_clip(model: ModelConfig) -> nn.Module:
    """The CLIP that a run is built on.

    Raises:
        InputError: ViCLIP without a path, an unknown CLIP, weights that cannot be read.
    """
    from m2clip.clip_loading import VICLIP, load_clip

    if model.clip in VICLIP and model.pretrained is None:
        raise InputError(
            f"model.pretrained is not set: give the path of a {model.clip} checkpoint (its weights are not downloaded)"
        )
    return load_clip(model.clip, model.pretrained)


def build_model(config: RunConfig, class_names: Sequence[str], clip: nn.Module | None = None) -> VideoModel:
    """The model that the configuration describes, told the shape of its episodes where it is trained by them.

    Args:
        config: the run.
        class_names: C names.
        clip: an open_clip CLIP in place of the one that config.model names.

    Raises:
        InputError: unknown CLIP, weights, method or options.
    """
    import m2clip

    model = config.model
    if clip is None:
        clip = base_clip(model)
    built: Any = m2clip.create_model(
        model.method,
        clip,
        class_names=list(class_names),
        num_frames=config.data.num_frames,
        preset=model.preset,
        **model.options,
    )
    if (shape := episode_shape(config)) is not None:
        built.episode = shape
    return built


def run_identity(config: RunConfig, model: VideoModel, annotations: Annotations) -> dict[str, Any]:
    """What decides every number of a run, as JSON values by name; a resumed run must agree in all of it."""
    from m2clip.data.annotations import list_hash

    fields = {name: value for name, value in flatten(config).items() if name not in _FREE}
    # Through the model, so that options left to a preset and the same options spelled out are the same run.
    fields |= {f"model.options.{name}": _plain(value) for name, value in model.options().items()}
    fields.pop("model.options", None)
    fields.pop("model.preset", None)
    # Frames of a pack are not quite those of the videos, whose hash it shares.
    packed = ", packed" if annotations.format == "shards" else ""
    return {
        **{name: _plain(value) for name, value in fields.items()},
        "class names": list(model.class_names),
        "training list": f"{len(annotations.items)} videos, sha256 {list_hash(annotations.items)}{packed}",
        "processes": distributed.world_size(),
    }


def complete_identity(saved: dict[str, Any]) -> dict[str, Any]:
    """The identity of an earlier run, with the fields that configurations did not have at that time.

    Such a field's default is what was done before there was a choice.
    """
    fields = {name: _plain(value) for name, value in flatten(RunConfig()).items() if name not in _FREE}
    for name in ("model.options", "model.preset"):  # an identity has the model's options one by one
        del fields[name]
    return {**fields, **saved}


def _annotations(config: RunConfig, path: str, split: str | None, classes: Any) -> Annotations:
    from m2clip.data.annotations import load_annotations

    data = config.data
    return load_annotations(path, root=data.root, format=data.format, class_names=classes, split=split)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
