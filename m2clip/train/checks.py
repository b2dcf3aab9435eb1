"""Whether a training run can work: model and schedule before it starts, class names, and the loss when it has ended."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from m2clip.config import RunConfig
from m2clip.data.lists.label_sets import prompt_name
from m2clip.data.video.readers import check_reader
from m2clip.errors import InputError
from m2clip.methods import find_method
from m2clip.methods.frozen import UNTRAINED, FrozenCLIP
from m2clip.methods.ma_fsar import MAFSAR
from m2clip.towers.loading import check_clip
from m2clip.train.starting import read_start
from m2clip.train.state import list_checkpoints
from m2clip.train.stepping import check_step_options

MIN_STEPS = 100  # fewer of AdamW's steps leave adapters near where they began
_FLIPPED = ("crop_flip", "multi_scale_crop")
_HANDED = re.compile(r"\b(?:left|right)(?:wards?|handed|hand)?\b|\b(?:counter|anti)?clockwise\b")
_SHARE = 5  # a run's beginning and end are fifths of it


def check_model(config: RunConfig, device: torch.device) -> None:
    """Refuse, before videos are looked at, a model that cannot be trained here; no weights are loaded.

    Args:
        config: the run.
        device: where it is trained.

    Raises:
        InputError: a CLIP or weights that cannot be used, a method that is not trained or not in this way, no adapters
            where some are to start from, an unknown reader, or a precision or a CUDA graph that the device has not.
    """
    model = config.model
    check_step_options(config.optim, device)
    check_reader(config.data.reader)
    kind = find_method(model.method).model
    if issubclass(kind, FrozenCLIP):
        raise InputError(UNTRAINED)
    if issubclass(kind, MAFSAR) and not config.episodes.train:
        raise by_episodes_alone(model.method)
    if model.init is not None and not list_checkpoints(Path(config.output, "checkpoints")):
        read_start(model.init)
    check_clip(model.clip, model.pretrained, model.image_size)


def by_episodes_alone(method: str) -> InputError:
    """What is wrong with training such a method on single videos."""
    return InputError(
        f"method {method} is trained by episodes: use m2clip episodes train, or set episodes.train to true"
    )


def check_schedule(
    config: RunConfig, *, total_steps: int, warmup_steps: int, samples_per_step: int, videos: int
) -> str | None:
    """One line about a schedule that leaves little to learn in; None where there is nothing to say.

    Args:
        config: the run.
        total_steps: optimiser steps of the run.
        warmup_steps: how many of them are warm-up.
        samples_per_step: clips of one step, over all processes.
        videos: videos of the training list.

    Raises:
        InputError: all steps are warm-up.
    """
    optim = config.optim
    what = f"{total_steps} optimiser steps in all, {warmup_steps} of them warm-up ({samples_per_step} clips per step)"
    if warmup_steps >= total_steps:
        raise InputError(
            f"{what}: none is left to train at the full rate; use fewer optim.warmup_epochs or more epochs"
        )
    if total_steps < MIN_STEPS:
        ways = [f"optim.epochs={math.ceil(MIN_STEPS * optim.epochs / total_steps)}"]
        per_epoch = math.ceil(MIN_STEPS / optim.epochs)
        batch = videos // (per_epoch * samples_per_step // optim.batch_size)
        if batch and not config.episodes.train:
            ways.append(f"optim.batch_size={batch}")
        return f"{what}: too few to learn from; use {' or '.join(ways)} for about {MIN_STEPS} steps or more"
    if warmup_steps > total_steps / 2:
        return f"{what}: more than half; use fewer optim.warmup_epochs or more optim.epochs"
    return None


def check_flip(config: RunConfig, class_names: Sequence[str]) -> str | None:
    """One line where clips are mirrored though class names tell left from right; None where they are not or do not."""
    if not config.data.flip or config.data.augmentation not in _FLIPPED:
        return None
    found = classes_of_left_and_right(class_names)
    if not found:
        return None
    return f"half of the clips are mirrored, but classes tell left from right ({some(found)}): use data.flip=false"


def classes_of_left_and_right(class_names: Sequence[str]) -> list[str]:
    """The class names that tell left from right, which a mirrored clip makes wrong."""
    words = {name: " ".join(re.findall(r"[^\W\d_]+", prompt_name(name).lower())) for name in class_names}
    found = [name for name, text in words.items() if _HANDED.search(text)]
    # Classes that differ in the letters l and r alone, such as "wave L" and "wave R".
    swapped = {text: re.sub(r"\b[lr]\b", lambda letter: "lr"["rl".index(letter[0])], text) for text in words.values()}
    texts = set(words.values())
    return found + [name for name, text in words.items() if swapped[text] != text and swapped[text] in texts]


def some(names: Sequence[str]) -> str:
    """The first two names, and how many more there are."""
    return ", ".join(repr(name) for name in names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def check_loss(rows: Sequence[dict[str, str]]) -> str | None:
    """One line where the loss of a run did not fall; None where it did, or where there is no telling.

    The means over its first and its last fifth are compared.

    Args:
        rows: the lines of metrics.csv (`m2clip.train.log.RunLog.rows`); each loss is the mean since the line before.
    """
    losses = [(int(row["step"]), float(row["loss"])) for row in rows if row.get("loss")]
    if len(losses) < 2:
        return None
    steps = losses[-1][0]
    width = max(1, steps // _SHARE)
    first, last = _mean(losses, 0, width), _mean(losses, steps - width, steps)
    if last < first:
        return None
    return (
        f"the loss did not fall: {first:.4g} over the first {width} of {steps} steps, {last:.4g} over the last "
        f"{width}; look at the labels, then try another optim.lr or more optim.epochs"
    )


def _mean(losses: Sequence[tuple[int, float]], start: int, end: int) -> float:
    """Mean over the steps after `start` up to `end`, of losses that are each a mean since the step before."""
    total = before = 0.0
    for step, loss in losses:
        total += loss * max(0, min(step, end) - max(before, start))
        before = step
    return total / (end - start)
