"""Which videos share a forward pass, so that a video's numbers depend neither on the others nor on who computes it.

A kernel may round a row of a batch differently when the batch has another size, or the row another place in it. So
every forward pass of a job has the same size, and the video at position i of the list always takes place i mod N of a
pass of N videos. Where a video cannot be read, or belongs to another part, its place is filled with zeros.

So results are equal to the bit on one kind of device, for one batch size, and on CPUs for one number of threads, which
torchrun and Ray set to 1, as OMP_NUM_THREADS=1 does elsewhere. Otherwise they differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from m2clip.at_scale.settings import Outcome, Work, finite
from m2clip.data.clips import ClipSettings, load_views
from m2clip.data.lists.rows import VideoItem
from m2clip.data.transforms import EvalTransform
from m2clip.data.video.base import VideoError
from m2clip.errors import InputError
from m2clip.sizes import sides


def pass_size(views: ClipSettings, batch_size: int) -> int:
    """Videos of a forward pass of `batch_size` views; one where a video has more views than that."""
    return max(1, batch_size // num_views(views))


def num_views(views: ClipSettings) -> int:
    """Views of a video."""
    return views.clips * EvalTransform(views.of_frames).num_crops


def pass_shape(views: ClipSettings, size: int) -> tuple[int, ...]:
    """(size, V, T, 3, H, W): the frames of a forward pass of `size` videos."""
    return size, num_views(views), views.num_frames, 3, *sides(views.size)


def passes(part: range, size: int) -> Iterator[range]:
    """The positions of a part that share a forward pass of `size` videos."""
    start = part.start
    while start < part.stop:
        stop = min(start - start % size + size, part.stop)
        yield range(start, stop)
        start = stop


def read_video(item: VideoItem, views: ClipSettings) -> Tensor | str:
    """The views of a video (V, T, 3, H, W), or why it cannot be read.

    Raises:
        InputError: what is wrong concerns all videos, such as a reader that is not installed.
    """
    try:
        return load_views(item, views)
    except VideoError as error:
        return str(error)
    except InputError:
        raise
    except Exception as error:  # a job of a million videos does not end because of one of them
        return f"{item.name}: {type(error).__name__}: {' '.join(str(error).split())}"


def assemble(read: Sequence[tuple[int, Tensor | str]], views: ClipSettings, size: int) -> tuple[Tensor, dict[int, str]]:
    """One forward pass: its videos in their places, (size, V, T, 3, H, W), and the errors by position in the list."""
    if size == 1 and isinstance(only := read[0][1], Tensor):
        return only[None], {}  # not copied, since it may have many views
    batch = torch.zeros(pass_shape(views, size))
    errors: dict[int, str] = {}
    for index, video in read:
        if isinstance(video, str):
            errors[index] = video
        else:
            batch[index % size] = video
    return batch, errors


def score_pass(
    work: Work, model: Any, batch: Tensor, positions: Sequence[int], errors: dict[int, str]
) -> list[Outcome]:
    """The outcomes of the videos of one forward pass.

    Args:
        work: the job; its own model is not used.
        model: the model on its device, in evaluation mode.
        batch: from `assemble`.
        errors: from `assemble`.
        positions: the videos' positions in the list.
    """
    settings = work.settings
    if len(errors) == len(positions):
        return [Outcome(index, {}, errors[index]) for index in positions]
    values = work.task.compute(model, batch, settings.batch_size, settings.precision)
    outcomes = []
    for index in positions:
        own, error = values[index % len(batch)], errors.get(index)
        if error is None and not finite(own):
            error = "what the model computes of this video are not finite numbers"
        outcomes.append(Outcome(index, {} if error else own, error))
    return outcomes
