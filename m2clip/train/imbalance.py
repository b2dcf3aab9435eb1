"""Classes of unequal numbers of videos: drawn more evenly, or weighed."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor

from m2clip.config import RunConfig
from m2clip.data.lists.annotations import Annotations
from m2clip.errors import InputError


def check_balance(config: RunConfig) -> None:
    """Refuse ways to treat classes that cannot go together.

    Raises:
        InputError: classes drawn evenly and weighed too; either of them by episodes, or with an order by shards.
    """
    balance, weights = config.data.balance, config.optim.class_weights
    if config.episodes.train and (balance != "none" or weights != "none"):
        raise InputError(
            "episodes have equally many videos of each class: leave data.balance and optim.class_weights out"
        )
    if balance != "none" and weights != "none":
        raise InputError(
            "data.balance and optim.class_weights would correct the classes' numbers twice: use one of them"
        )
    if balance != "none" and config.data.shuffle == "shards":
        raise InputError("data.balance draws from all videos, data.shuffle=shards from a few shards: use one of them")


def sampler_options(config: RunConfig, annotations: Annotations) -> dict[str, Any]:
    """What `m2clip.data.clips.EpochSampler` is told of the classes."""
    if config.data.balance == "none":
        return {}
    return {"classes": [item.label for item in annotations.items], "root": config.data.balance == "sqrt"}


def class_weights(
    annotations: Annotations, num_classes: int, kind: Literal["none", "classes", "sqrt"]
) -> Tensor | None:
    """(C,) weights inversely proportional to the classes' numbers of videos, of mean 1 over the videos.

    Args:
        annotations: the training videos.
        num_classes: C.
        kind: "classes", "sqrt" for the square roots of the numbers, or "none".

    Returns:
        fp32; None for "none". A class without videos has the weight 0.
    """
    if kind == "none":
        return None
    counts = Counter(item.label for item in annotations.items)
    power = 1.0 if kind == "classes" else 0.5
    weights = torch.tensor([counts[label] ** -power if counts[label] else 0.0 for label in range(num_classes)])
    of_videos = sum(float(weights[label]) * count for label, count in counts.items())
    return weights * (len(annotations.items) / of_videos)
