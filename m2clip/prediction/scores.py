"""Scores of views, by the head that knows the class names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from m2clip.data.clips import ClipSettings
from m2clip.data.transforms import normalized, statistics
from m2clip.errors import InputError
from m2clip.evaluate.scoring import rank_classes, score_views

BATCH_SIZE = 16  # views of a forward pass


def head_scores(
    scorer: Any, views: Tensor, settings: ClipSettings, device: torch.device, precision: str
) -> tuple[str, Tensor]:
    """Which head answers, "supervised" or "zero-shot", and its scores (V, C) of views (V, T, 3, H, W)."""
    supervised, similarity = score_views(scorer, _batches(views, settings, device), device, precision)
    return ("zero-shot", similarity) if supervised is None else ("supervised", supervised)


def ranked(scores: Tensor, names: Sequence[str], video: str) -> list[tuple[str, float]]:
    """(name, score) of scores (C,), best first; InputError where one is no finite number."""
    check_finite(scores, video)
    return [(names[number], float(scores[number])) for number in rank_classes(scores).tolist()]


def check_finite(scores: Tensor, video: str) -> None:
    """InputError where a model has diverged, or its precision is too low for it."""
    if not all(map(math.isfinite, scores.flatten().tolist())):
        raise InputError(f"{video}: the model's scores are not finite numbers: try --precision fp32")


def pixels(view: Tensor, settings: ClipSettings) -> Tensor:
    """(..., 3, height, width) uint8 of frames as a model sees them, in memory of their own."""
    if view.dtype == torch.uint8:
        return view.clone()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics(settings.normalize))
    return ((view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _batches(video: Tensor, settings: ClipSettings, device: torch.device) -> Iterator[Tensor]:
    """The normalised views of each forward pass."""
    for batch in video.split(BATCH_SIZE):
        # On a CPU many views at once take memory and save no time. One view alone would be rounded otherwise than two.
        small = batch.tensor_split(max(1, len(batch) // 2)) if device.type == "cpu" else [batch]
        yield from (normalized(views, settings.of_frames) for views in small)
