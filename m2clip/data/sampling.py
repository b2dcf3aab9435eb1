"""Which frames of a video make a clip: rules that return T frame indices, in ascending order unless they say more."""

from __future__ import annotations

import random
from typing import get_args

from m2clip.choices import Sampling

SAMPLINGS = get_args(Sampling)


def uniform_indices(
    num_frames: int,
    length: int,
    *,
    rng: random.Random | None = None,
    clip: int = 0,
    num_clips: int = 1,
    authors: bool = False,
) -> list[int]:
    """One frame from each of T equal segments of the video.

    Segments are bounded by round(i * (n - 1) / T), i = 0 ... T. In training a segment gives a random frame, both bounds
    included. In testing, clip i of k takes the frame (2 i + 1) / (2 k) into every segment, rounded down (of a single
    clip the middle). Videos of fewer than T frames repeat the last one.

    Args:
        num_frames: frames of the video, n >= 1.
        length: frames of the clip, T >= 1.
        rng: source of the random frames; None for testing.
        clip: which test clip, from 0.
        num_clips: how many test clips there are.
        authors: videos of fewer than T frames have T segments too, of which some share a frame.

    Raises:
        ValueError: n or T below 1, or clip outside 0 ... num_clips - 1.

    Source: M2-CLIP's code, uniform sampling of its Something-Something recipe.
    """
    _check(num_frames, length, clip, num_clips)
    if num_frames < length and not authors:
        return _padded(range(num_frames), num_frames - 1, length)
    bounds = [round((num_frames - 1) / length * i) for i in range(length + 1)]
    segments = list(zip(bounds, bounds[1:], strict=False))
    if rng is not None:
        return [rng.randint(start, end) for start, end in segments]
    return [start + (end - start) * (2 * clip + 1) // (2 * num_clips) for start, end in segments]


def dense_indices(
    num_frames: int,
    length: int,
    stride: int,
    *,
    rng: random.Random | None = None,
    clip: int = 0,
    num_clips: int = 1,
    authors: bool = False,
) -> list[int]:
    """T frames at a fixed stride: from a random start in training, from equally spaced starts in testing.

    The clip spans (T - 1) * stride + 1 frames. With m = n - span spare frames, test clip i of k starts at
    round(m / (k - 1) * i), and a single clip at m // 2. Frames past the end of a short video are its last frame.

    Args:
        num_frames: frames of the video, n >= 1.
        length: frames of the clip, T >= 1.
        stride: distance between two frames of the clip, in frames, >= 1.
        rng: source of the random start; None for testing.
        clip: which test clip, from 0.
        num_clips: how many test clips there are.
        authors: in training, frames past the end are the last frame at the stride, as in M2-CLIP's code.

    Raises:
        ValueError: n, T or stride below 1, or clip outside 0 ... num_clips - 1.

    Source: M2-CLIP's code, dense sampling of its Kinetics recipe.
    """
    _check(num_frames, length, clip, num_clips, stride)
    spare = max(num_frames - ((length - 1) * stride + 1), 0)
    if rng is not None:
        start = rng.randint(0, spare)
    elif num_clips == 1:
        start = spare // 2
    else:
        start = round(spare / (num_clips - 1) * clip)
    inside = range(start, num_frames, stride)
    return _padded(inside, inside[-1] if authors and rng is not None else num_frames - 1, length)


def dense_centre_indices(
    num_frames: int,
    length: int,
    stride: int,
    *,
    rng: random.Random | None = None,
    clip: int = 0,
    num_clips: int = 1,
) -> list[int]:
    """T frames at a fixed stride: from a random start in training, in the middle of equal parts in testing.

    The clip counts T * stride frames. With m = n - T * stride + 1 possible starts, training draws one of them, and test
    clip i of k starts at m / k * (i + 1/2), rounded down. In a shorter video the clip starts at frame 0, and goes on
    with frame 0 after the last frame, so that indices may descend.

    Args:
        num_frames: frames of the video, n >= 1.
        length: frames of the clip, T >= 1.
        stride: distance between two frames of the clip, in frames, >= 1.
        rng: source of the random start; None for testing.
        clip: which test clip, from 0.
        num_clips: how many test clips there are.

    Raises:
        ValueError: n, T or stride below 1, or clip outside 0 ... num_clips - 1.

    Source: AIM's code, that is the frame sampling of MMAction2.
    """
    _check(num_frames, length, clip, num_clips, stride)
    starts = max(num_frames - length * stride + 1, 1)
    start = int(starts / num_clips * clip + starts / num_clips / 2) if rng is None else rng.randrange(starts)
    return [(start + step * stride) % num_frames for step in range(length)]


def _padded(indices: range, filler: int, length: int) -> list[int]:
    chosen = list(indices[:length])
    return chosen + [filler] * (length - len(chosen))


def _check(num_frames: int, length: int, clip: int, num_clips: int, stride: int = 1) -> None:
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}")
    if num_frames < 1 or length < 1:
        raise ValueError(f"a clip needs at least one frame: the video has {num_frames}, the clip {length}")
    if not 0 <= clip < num_clips:
        raise ValueError(f"clip must be one of 0 to {num_clips - 1}, not {clip}")
