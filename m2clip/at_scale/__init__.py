"""Labels and features of very many videos: cut into parts, restartable at any moment, on one machine or a cluster.

The output is a folder with a file for every part of the list (`parts/`), a table of all videos (`labels.csv`,
`features.csv`), and `manifest.json`: what was computed with what, and which videos failed and why. A call that
was stopped resumes where it stopped, with any executor. A video's numbers depend neither on the executor nor
on the size of the parts: see `m2clip.at_scale.passes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m2clip.at_scale.embeddings import FeaturesTask
from m2clip.at_scale.job import run
from m2clip.at_scale.labels import LabelTask
from m2clip.at_scale.local import LocalProcess
from m2clip.at_scale.ray_data import RayCluster
from m2clip.at_scale.settings import Executor, JobSettings, Summary, Task, Work
from m2clip.at_scale.tables import require_pyarrow
from m2clip.at_scale.videos import read_videos
from m2clip.data.clips import ClipSettings
from m2clip.data.lists.rows import VideoItem
from m2clip.errors import InputError
from m2clip.methods.views import default_settings

__all__ = ["JobSettings", "LocalProcess", "RayCluster", "Summary", "features", "label", "read_videos"]


def label(
    model: Any,
    videos: Sequence[VideoItem],
    output: str | os.PathLike[str],
    *,
    top: int = 5,
    format: str = "jsonl",
    views: ClipSettings | None = None,
    settings: JobSettings | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary | None:
    """The most probable classes of every video, with the mean over views of the softmax over classes.

    Args:
        model: a video model (`m2clip.create_model`, `m2clip.load_adapters`), whose VC head is asked where it has one
            for its class names, else its text similarity; is moved to the device and put in evaluation mode.
        videos: the list, as from `read_videos`.
        output: folder for the results.
        top: how many classes are stored.
        format: of the parts, "jsonl" or "parquet".
        views: how views of a video are drawn; None takes one centre crop of uniformly sampled frames, decoded in
            processes that a video may crash.
        settings: how the list is cut up; None takes the defaults.
        executor: `LocalProcess` (the default; under torchrun one in each process) or `RayCluster`.
        progress: called with (videos done, videos of the list).

    Returns:
        What was done. None in a process of torchrun that is not the first.

    Raises:
        InputError: the folder holds another job, or cannot be written; with on_error "raise", a video that failed.
    """
    return _start(LabelTask(top, format), model, videos, output, views, settings, executor, progress)


def features(
    model: Any,
    videos: Sequence[VideoItem],
    output: str | os.PathLike[str],
    *,
    format: str = "safetensors",
    views: ClipSettings | None = None,
    settings: JobSettings | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary | None:
    """Features of every video (D,) and of its frames (T, D), fp32, not normalised, means over views.

    Args:
        format: of the parts, "safetensors" or "parquet"; `m2clip.at_scale.embeddings.FeaturesTask` says what is in
            them.
        model: as for `label`.
        videos: as for `label`.
        output: as for `label`.
        views: as for `label`.
        settings: as for `label`.
        executor: as for `label`.
        progress: as for `label`.

    Returns:
        What was done. None in a process of torchrun that is not the first.

    Raises:
        InputError: as for `label`.
    """
    return _start(FeaturesTask(format), model, videos, output, views, settings, executor, progress)


def _start(
    task: Task,
    model: Any,
    videos: Sequence[VideoItem],
    output: str | os.PathLike[str],
    views: ClipSettings | None,
    settings: JobSettings | None,
    executor: Executor | None,
    progress: Callable[[int, int], None] | None,
) -> Summary | None:
    if not videos:
        raise InputError("the list has no videos")
    if task.suffix == "parquet":
        require_pyarrow()
    views = views or default_settings(model, isolate=True)
    work = Work(task, model, tuple(videos), views, settings or JobSettings())
    return run(work, Path(output), executor or LocalProcess(), progress)
