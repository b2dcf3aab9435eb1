"""What happens in videos, in the words of a label set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from m2clip.data.clips import ClipSettings, views_of
from m2clip.data.memory import LoadedVideo, VideoSource, open_source
from m2clip.errors import InputError
from m2clip.evaluate.scoring import fuse_views, scoring_mode
from m2clip.methods.views import default_settings
from m2clip.prediction.results import Prediction
from m2clip.prediction.scores import BATCH_SIZE, head_scores, pixels, ranked
from m2clip.prediction.segments import SegmentRule
from m2clip.prediction.timeline import Timeline
from m2clip.prediction.windows import WindowSettings, check_evenly, score_windows


@overload
def predict(
    model: Any, video: list[VideoSource], labels: Sequence[str] | None = ..., *, window: None = ..., **named: Any
) -> list[Prediction]: ...
@overload
def predict(
    model: Any, video: VideoSource, labels: Sequence[str] | None = ..., *, window: None = ..., **named: Any
) -> Prediction: ...
@overload
def predict(
    model: Any, video: VideoSource, labels: Sequence[str] | None = ..., *, window: float, **named: Any
) -> Timeline: ...
def predict(
    model: Any,
    video: Any,
    labels: Sequence[str] | None = None,
    *,
    top: int = 5,
    window: float | None = None,
    step: float | None = None,
    threshold: float = 0.5,
    low: float | None = None,
    min_length: float | None = None,
    fps: float | None = None,
    precision: str = "fp32",
    progress: Callable[[float, float], None] | None = None,
    **views: Any,
) -> Any:
    """What happens in a video. Several threads may ask one model, about different classes too.

    Args:
        model: a video model (`m2clip.create_model`, `m2clip.load_adapters`); its VC head is asked where it has one for
            the class names, else its text similarity.
        video: a path, the bytes or the open binary file of a video, its frames (T, H, W, 3) as uint8 or as floats in
            0 ... 1, what `m2clip.load_video` gave, or a list of these, which share forward passes.
        labels: the names to choose from; None takes the model's.
        top: how many classes the result shows and `to_dict` has.
        window: seconds of a window that is moved over a long video; None takes the video as a whole.
        step: seconds from one window to the next; None takes a quarter of the window.
        threshold: as in `SegmentRule`.
        low: as in `SegmentRule`; None takes half of the threshold.
        min_length: as in `SegmentRule`; None takes half of the window.
        fps: frames per second of frames that are given without times, for windows.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        progress: called with (seconds done, seconds of the video) while windows are scored.
        views: fields of `m2clip.data.clips.ClipSettings`, such as clips=4, crops=3 or sampling="dense", in place of the
            model's own; the softmax scores of several views are averaged. With windows, whose frames are evenly spread,
            clips, sampling and stride say nothing.

    Returns:
        A `Prediction`, or with a window a `Timeline`; of a list of videos a list.

    Raises:
        InputError: a video that cannot be read, impossible views or windows, or scores that are not finite.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    several = isinstance(video, list) or (isinstance(video, tuple) and not isinstance(video, LoadedVideo))
    videos = list(video) if several else [video]
    if not videos:
        raise InputError("the list of videos is empty")
    settings = default_settings(model, **views)
    found: list[Any]
    if window is None:
        found = predict_videos(model, videos, settings, precision=precision, class_names=labels, top=top)
    else:
        check_evenly(views)
        windows = WindowSettings.of(window, step)
        rule = SegmentRule.for_window(window, threshold, low, min_length)
        found = [
            score_windows(
                model, one, windows, rule, settings, class_names=labels, fps=fps, precision=precision, progress=progress
            )
            for one in videos
        ]
    return found if several else found[0]


def predict_video(
    model: Any,
    path: str | os.PathLike[str],
    *,
    settings: ClipSettings | None = None,
    precision: str = "fp32",
    class_names: Sequence[str] | None = None,
) -> Prediction:
    """Class names, scores and the frames that were seen, of one video; the rest as for `predict_videos`."""
    return predict_videos(model, [path], settings, precision=precision, class_names=class_names)[0]


def predict_videos(
    model: Any,
    videos: Sequence[VideoSource],
    settings: ClipSettings | None = None,
    *,
    precision: str = "fp32",
    class_names: Sequence[str] | None = None,
    top: int = 5,
) -> list[Prediction]:
    """Class names, scores and the frames that were seen, of several videos.

    Args:
        model: a video model, on its device.
        videos: each as `predict` takes it.
        settings: how views are drawn; None takes the model's own views: those of its run, else one centre crop of
            uniformly sampled frames.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        class_names: the names to choose from; None takes the model's.
        top: how many classes a result shows.

    Raises:
        InputError: a video that cannot be read, bad class names, or scores that are not finite.
    """
    settings = settings or default_settings(model)
    device = next(model.parameters()).device
    found: list[Prediction] = []
    with scoring_mode(model, class_names) as scorer:
        names, group = scorer.class_names, list[tuple[str, Tensor]]()
        for number, video in enumerate(videos, 1):
            with open_source(video, settings) as (opened, name):
                group.append((name, views_of(opened, settings, pixels=True)))
            # Videos that are short share forward passes; of many only a few are in memory.
            if sum(len(views) for _, views in group) >= BATCH_SIZE or number == len(videos):
                together = torch.cat([views for _, views in group]) if len(group) > 1 else group[0][1]
                head, scores = head_scores(scorer, together, settings, device, precision)
                parts = scores.split([len(views) for _, views in group])
                for (name, views), part in zip(group, parts, strict=True):
                    best = ranked(fuse_views(part), names, name)
                    found.append(Prediction(name, head, best, _middle(views, settings), top))
                group.clear()
    return found


def _middle(views: Tensor, settings: ClipSettings) -> Tensor:
    """(T, 3, height, width) uint8 of the middle view."""
    crops = len(views) // settings.clips
    return pixels(views[settings.clips // 2 * crops + crops // 2], settings)
