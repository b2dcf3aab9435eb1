"""What happens in one video, in the words of a label set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2clip.errors import InputError
from m2clip.evaluate import fuse_views, rank_classes, score_views

if TYPE_CHECKING:
    from m2clip.data.clips import ClipSettings

BATCH_SIZE = 16


@dataclass(frozen=True)
class Prediction:
    """A video's classes.

    Attributes:
        path: the video.
        head: which scores these are: "supervised" (VC head) or "zero-shot" (text similarity).
        ranked: (name, score) of every class, best first; the scores are probabilities and sum to 1.
        frames: (T, 3, height, width) uint8, the middle clip as the model saw it.
    """

    path: str
    head: str
    ranked: list[tuple[str, float]]
    frames: Tensor

    def to_dict(self, top: int) -> dict[str, Any]:
        """The best `top` classes as JSON types."""
        best = [{"name": name, "score": score} for name, score in self.ranked[:top]]
        return {"path": self.path, "head": self.head, "predictions": best}


def predict(
    model: Any, path: str | os.PathLike[str], *, clips: int = 1, crops: int | str = 1, **views: Any
) -> list[tuple[str, float]]:
    """Class names and scores of a video, best first.

    Args:
        model: a video model (`m2clip.create_model`, `m2clip.load_adapters`); its VC head is asked where it has one for
            its class names, else its text similarity.
        path: video file.
        clips, crops: views of the video, whose softmax scores are averaged.
        views: further fields of `m2clip.data.clips.ClipSettings`, such as sampling="dense", stride=16.

    Raises:
        InputError: a video that cannot be read, or impossible views.
    """
    return predict_video(model, path, settings=default_settings(model, clips=clips, crops=crops, **views)).ranked


def predict_video(
    model: Any, path: str | os.PathLike[str], *, settings: ClipSettings | None = None, precision: str = "fp32"
) -> Prediction:
    """Class names, scores and the frames that were seen.

    Args:
        model: a video model, on its device.
        path: video file.
        settings: how views are drawn; None takes one centre crop of uniformly sampled frames.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Raises:
        InputError: a video that cannot be read, or scores that are not finite.
    """
    from m2clip.data.clips import load_views

    settings = settings or default_settings(model)
    video = load_views(Path(path), settings)
    training = model.training
    model.eval()
    try:
        supervised, similarity = score_views(model, video, next(model.parameters()).device, BATCH_SIZE, precision)
    finally:
        model.train(training)
    head = "zero-shot" if supervised is None else "supervised"
    scores = fuse_views(similarity if supervised is None else supervised)
    if not bool(torch.isfinite(scores).all()):
        raise InputError(f"{path}: the model's scores are not finite numbers: try --precision fp32")
    order = rank_classes(scores).tolist()
    ranked = [(model.class_names[number], float(scores[number])) for number in order]
    crops = len(video) // settings.clips
    middle = video[settings.clips // 2 * crops + crops // 2]
    return Prediction(str(path), head, ranked, _pixels(middle, settings))


def default_settings(model: Any, **views: Any) -> ClipSettings:
    """How views are drawn where no run says it: clips of the model's length and size, and the given further fields."""
    from m2clip.data.clips import ClipSettings

    height, width = model.image_size
    if height != width:
        raise InputError(f"the model takes images of {height}x{width} pixels: only square ones are supported")
    return ClipSettings(num_frames=model.num_frames, size=height, **views)


def _pixels(view: Tensor, settings: ClipSettings) -> Tensor:
    """(T, 3, height, width) uint8 of a normalised view."""
    from m2clip.data.transforms import NORMALIZATION

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATION[settings.normalize])
    return ((view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
