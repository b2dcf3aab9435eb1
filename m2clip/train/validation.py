"""Validation during training: over all videos of a list, or by episodes of classes that are not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from m2clip.config import RunConfig
from m2clip.data.clips import ClipDataset
from m2clip.data.episode_clips import EpisodeVideos
from m2clip.data.episodes import EpisodeShape, draw_episodes
from m2clip.evaluate.episodes import evaluate_episodes
from m2clip.evaluate.scoring import evaluate_model
from m2clip.evaluate.tables import write_predictions
from m2clip.methods import VideoModel


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        top1: what weights are chosen by.
        columns: numbers for metrics.csv: val_top1, and by head.
        line: what to tell.
        save: writes the whole result to a file.
        save_predictions: writes what is predicted of each video to a file; None where episodes are scored.
    """

    top1: float
    columns: dict[str, float]
    line: str
    save: Callable[[Path], Any]
    save_predictions: Callable[[Path], Any] | None = None


def score(
    model: VideoModel,
    videos: ClipDataset,
    config: RunConfig,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Validate; all processes of a group take part.

    Args:
        model: the model; its mode stays as it is.
        videos: what `m2clip.train.setup.datasets` made.
        config: the run.
        device: where the model is.
        progress: called with (videos done, videos of this process), where whole lists are scored.

    Raises:
        InputError: no video can be scored, or one cannot and eval.on_error is "raise".
    """
    if isinstance(videos, EpisodeVideos):
        return _by_episodes(model, videos, config, device)

    result = evaluate_model(
        model,
        videos,
        config.eval,
        device=device,
        workers=config.data.workers,
        precision=config.optim.precision,
        timeout=config.data.timeout,
        progress=progress,
    )
    columns = {"val_top1": result.top1, "val_mean_class": result.main.mean_class}
    if result.top5 is not None:
        columns["val_top5"] = result.top5
    columns |= {f"val_top1_{head.replace('-', '_')}": scores.top1 for head, scores in result.heads.items()}
    line = f"top-1 {result.top1:.4f} of {result.denominator} videos"
    predictions = partial(write_predictions, result, videos.annotations.items)
    return Validation(result.top1, columns, line, result.save, predictions)


def _by_episodes(model: VideoModel, videos: Any, config: RunConfig, device: torch.device) -> Validation:
    chosen = config.episodes
    # Always the same ones, so that epochs, and runs of other seeds, can be compared.
    episodes = draw_episodes(videos.annotations, EpisodeShape(chosen.way, chosen.val_shots), chosen.val_episodes)
    (result,) = evaluate_episodes(
        model,
        videos,
        [episodes],
        config.eval,
        device=device,
        workers=config.data.workers,
        precision=config.optim.precision,
    )
    columns = {"val_top1": result.main.mean}
    columns |= {f"val_top1_{head}": found.mean for head, found in result.heads.items()}
    line = f"{result.way}-way {result.shots}-shot {result.main} % of {result.denominator} {chosen.select_by} episodes"
    return Validation(result.main.mean, columns, line, result.save)
