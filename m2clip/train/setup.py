"""What a training run is made of: lists, datasets, model, seeds, and its identity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip import distributed
from m2clip.checkpoints.adapters import WEIGHTS_FILE, weights_hash
from m2clip.config import ModelConfig, RunConfig, config_text, load_config
from m2clip.config_fields import deciding
from m2clip.data.check.parts import check_parts
from m2clip.data.clips import ClipDataset, ClipSettings, EpochSampler, collate
from m2clip.data.episode_clips import EpisodeClips, EpisodeVideos
from m2clip.data.episodes import EpisodeShape, class_videos
from m2clip.data.hold_out import tell_in_both
from m2clip.data.lists.annotations import Annotations, list_hash, load_annotations, packed_hash
from m2clip.data.lists.label_sets import match_key
from m2clip.data.loading import load
from m2clip.data.train_lists import FOLDER, RECORD
from m2clip.errors import InputError
from m2clip.files.disk import read_text
from m2clip.files.folders import check_apart
from m2clip.files.kept_work import plain
from m2clip.methods import VideoModel, complete_options
from m2clip.methods.views import default_settings
from m2clip.towers.loading import VICLIP, load_clip
from m2clip.train.checks import by_episodes_alone
from m2clip.train.imbalance import sampler_options
from m2clip.train.log import BAD_VIDEOS, METRICS, WARNINGS
from m2clip.train.loggers import LOGGERS, RUN_IDS
from m2clip.train.starting import place_of
from m2clip.train.state import list_checkpoints

# What a run that was killed before its first checkpoint leaves.
_BEGUN = {"config.yaml", METRICS, BAD_VIDEOS, WARNINGS, RUN_IDS, *LOGGERS, "checkpoints"}


class LossModule(nn.Module):
    """What DistributedDataParallel wraps: a module whose forward pass is the model's loss."""

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, labels: Tensor, *drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.model.loss(video, labels, drawn=drawn)
        return loss.total, loss.parts


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, numpy and Python."""
    import numpy

    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that other libraries draw from
    random.seed(seed)


def check_output(config: RunConfig) -> None:
    """Refuse a run folder where it would mix with the videos, or a record of the run replace what is read.

    Raises:
        InputError: naming both.
    """
    data, episodes = config.data, config.episodes
    lists = (data.train, data.val, episodes.test)
    check_apart(config.output, *lists, option="output")
    if config.model.init is not None and Path(config.model.init).exists():
        check_apart(Path(config.output, WEIGHTS_FILE), place_of(config.model.init) / WEIGHTS_FILE, option="output")
    for name in ("config.yaml", METRICS, BAD_VIDEOS):
        check_apart(Path(config.output, name), *lists, data.classes, option="output")


def check_folder(config: RunConfig) -> None:
    """Refuse a run folder with files of others, which a new run would replace or add to.

    Raises:
        InputError: it holds no checkpoint, but files that no run has begun to write.
    """
    folder = Path(config.output)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if (folder / FOLDER / RECORD).is_file():
        names.discard(FOLDER)
    if not names or list_checkpoints(folder / "checkpoints"):
        return
    others = sorted(names - _BEGUN)
    if not others and not _is_begun(config, names):
        others = sorted(names)
    if others:
        raise InputError(
            f"{folder}: holds no checkpoint, but other files, such as {others[0]}; give a new output folder"
        )


def _is_begun(config: RunConfig, names: set[str]) -> bool:
    saved = Path(config.output, "config.yaml")
    try:
        # Without the records of a run it may be what the user gave as configuration: no other text takes its place.
        return read_text(saved) == config_text(load_config(saved) if names & {RUN_IDS, *LOGGERS} else config)
    except (OSError, ValueError):
        return False


def training_list(config: RunConfig) -> tuple[Annotations, list[str]]:
    """The training videos and the class names.

    Raises:
        InputError: no list given, a bad list, no class names.
    """
    annotations = named_list(config, config.data.train, config.data.train_split, config.data.classes)
    return annotations, list(annotations.class_names or ())


def named_list(
    config: RunConfig,
    path: str | None,
    split: str | None,
    classes: str | Sequence[str] | None,
    field: str = "data.train",
    classes_field: str = "data.classes",
) -> Annotations:
    """A list of videos with their class names, read as the configuration says.

    Args:
        config: the run.
        path: the list.
        split: which part of it.
        classes: its class names, or the label set or class file of these.
        field: where the configuration names the list, for messages.
        classes_field: where it names the classes, for messages.

    Raises:
        InputError: no list given, a bad list, no class names.
    """
    data = config.data
    if path is None:
        raise InputError(f"{field} is not set: give a list of videos or a folder with one sub-folder per class")
    found = load_annotations(
        path,
        root=data.root,
        format=data.format,
        class_names=classes,
        split=split,
        allow_mismatched_folders=data.allow_mismatched_folders,
    )
    if found.class_names is None:
        raise InputError(f"{path} gives class numbers but no names: set {classes_field} to a label set or a class file")
    return found


def clip_settings(config: RunConfig, model: VideoModel) -> ClipSettings:
    """How clips are drawn and prepared for a model."""
    data = config.data
    return default_settings(
        model,
        sampling=data.sampling,
        stride=data.stride,
        clips=config.eval.clips,
        reader=data.reader,
        isolate=data.isolate,
        augmentation=data.augmentation,
        flip=data.flip,
        **({} if data.normalize == "model" else {"normalize": data.normalize}),
        transform=data.transform,
        crops=config.eval.crops,
    )


def episode_shape(config: RunConfig) -> EpisodeShape | None:
    """Shape of the episodes of training; None where training is not by episodes."""
    chosen = config.episodes
    return EpisodeShape(chosen.way, chosen.shots, chosen.queries) if chosen.train else None


def clips_per_pass(config: RunConfig) -> int:
    """Clips of one process in one forward pass of training."""
    shape = episode_shape(config)
    return config.optim.batch_size if shape is None else shape.videos


def datasets(
    config: RunConfig, annotations: Annotations, class_names: Sequence[str], model: VideoModel
) -> tuple[ClipDataset, ClipDataset | None]:
    """Training clips, and the views of the validation videos where there are any.

    In training by episodes these are `EpisodeClips`, whose items are whole batches, and `EpisodeVideos` of other
    classes than those of training.

    Raises:
        InputError: a bad validation list; parts that are not in their videos; too few classes or videos for an
            episode; a method that learns by episodes alone in training without them.
    """
    settings = clip_settings(config, model)
    shape = episode_shape(config)
    distributed.by_main(lambda: check_parts(annotations, config.data.isolate))
    if shape is None and hasattr(model, "episode"):
        raise by_episodes_alone(model.method)
    if shape is not None:
        val = _validation_classes(config, class_names)
        episodes = EpisodeClips(annotations, settings, shape, config.episodes.per_epoch, seed=config.seed)
        return episodes, None if val is None else EpisodeVideos(val, settings)
    train = ClipDataset(annotations, settings, training=True, seed=config.seed)
    if config.data.val is None:
        return train, None
    val = named_list(config, config.data.val, config.data.val_split, class_names)
    distributed.by_main(lambda: check_parts(val, config.data.isolate))
    distributed.by_main(lambda: tell_in_both(annotations.items, val.items))
    return train, ClipDataset(val, settings, training=False, seed=config.seed)


def _validation_classes(config: RunConfig, trained: Sequence[str]) -> Annotations | None:
    """The videos that weights are chosen by in training by episodes: of classes that are not trained on."""
    chosen = config.episodes
    places = {
        "val": (config.data.val, config.data.val_split, chosen.val_classes),
        "test": (chosen.test, chosen.test_split, chosen.test_classes),
    }
    path, split, classes = places[chosen.select_by]
    if path is None:
        return None
    found = named_list(config, path, split, classes, classes_field=f"episodes.{chosen.select_by}_classes")
    keys = {match_key(name) for name in trained}
    both = next((name for name in found.class_names or () if match_key(name) in keys), None)
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
    clips = len(dataset) * config.data.repeat // processes
    if clips < batch:
        raise InputError(
            f"{config.data.train} lists {len(dataset)} videos, fewer than optim.batch_size x processes "
            f"({batch} x {processes}): use a smaller optim.batch_size, or a larger data.repeat"
        )
    return clips // batch


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
    # An episode is drawn by its number, and comes as a batch.
    episodes, size = config.episodes.train, config.optim.batch_size
    sampler = EpochSampler(
        len(dataset),
        seed=config.seed,
        epoch=epoch,
        shuffle=not episodes,
        shards=_shards(config, dataset),
        repeat=1 if episodes else config.data.repeat,
        **sampler_options(config, dataset.annotations),
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
    if model.clip in VICLIP and model.pretrained is None:
        raise InputError(
            f"model.pretrained is not set: give the path of a {model.clip} checkpoint (its weights are not downloaded)"
        )
    return load_clip(model.clip, model.pretrained, tokenizer=model.tokenizer, image_size=model.image_size)


def build_model(config: RunConfig, class_names: Sequence[str], clip: nn.Module | None = None) -> VideoModel:
    """The model that the configuration describes, told the shape of its episodes where it is trained by them.

    Args:
        config: the run.
        class_names: C names.
        clip: an open_clip CLIP in place of the one that config.model names.

    Raises:
        InputError: unknown CLIP, weights, method or options.
    """
    from m2clip.methods import create_model

    model = config.model
    if clip is None:
        clip = base_clip(model)
    built: Any = create_model(
        model.method,
        clip,
        class_names=list(class_names),
        num_frames=config.data.num_frames,
        preset=model.preset,
        **model.options,
    )
    if (shape := episode_shape(config)) is not None:
        built.episode = shape
    built.recompute(config.optim.checkpointing)
    return built


def run_identity(config: RunConfig, model: VideoModel, annotations: Annotations) -> dict[str, Any]:
    """What decides every number of a run, as JSON values by name; a resumed run must agree in all of it."""
    fields = deciding(config, "training")
    # Through the model, so that options left to a preset and the same options spelled out are the same run.
    fields |= {f"model.options.{name}": value for name, value in model.options().items()}
    fields.pop("model.options", None)
    fields.pop("model.preset", None)
    # Frames of a pack are not quite those of the videos, whose hash it shares.
    packed = f", packed {packed_hash(annotations.items) or ''}".rstrip() if annotations.format == "shards" else ""
    frozen = {name: parameter.detach() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    fields |= {
        # Not by their name: files move, and another file may have the same name.
        "frozen weights": f"sha256 {weights_hash(frozen)[:16]}",
        "model.init": model.started_from,
        "class names": model.class_names,
        "training list": f"{len(annotations.items)} videos, sha256 {list_hash(annotations.items)}{packed}",
        "processes": distributed.world_size(),
    }
    return plain(fields)


def complete_identity(saved: dict[str, Any]) -> dict[str, Any]:
    """The identity of an earlier run, with the fields that configurations did not have at that time.

    Such a field's default is what was done before there was a choice.
    """
    fields = deciding(RunConfig(), "training")
    for name in ("model.options", "model.preset"):  # an identity has the model's options one by one
        del fields[name]
    options = complete_options(str(saved.get("model.method")), {})
    return plain({**fields, **{f"model.options.{name}": value for name, value in options.items()}, **saved})
