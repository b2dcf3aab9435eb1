"""Which frames of a video make a clip. Both rules return T frame indices in ascending order."""

from __future__ import annotations

import random


def uniform_indices(
    num_frames: int, length: int, *, rng: random.Random | None = None, clip: int = 0, num_clips: int = 1
) -> list[int]:
    """One frame from each of T equal segments of the video.

    Segments are bounded by round(i * (n - 1) / T), i = 0 ... T. In training a segment gives a random frame, both bounds
    included. In testing, clip i of k takes the frame (2 i + 1) / (2 k) into every segment, rounded down (a single
    clip: the middle). Videos of fewer than T frames repeat the last one.

    Args:
        num_frames: frames of the video, n >= 1.
        length: frames of the clip, T >= 1.
        rng: source of the random frames; None for testing.
        clip, num_clips: which of how many test clips.

    Raises:
        ValueError: n or T below 1, or clip outside 0 ... num_clips - 1.

    Source: M2-CLIP's code, uniform sampling of its Something-Something recipe.
    """
    _check(num_frames, length, clip, num_clips)
    if num_frames < length:
        return _padded(range(num_frames), num_frames, length)
    bounds = [round(i * (num_frames - 1) / length) for i in range(length + 1)]
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
) -> list[int]:
    """T frames at a fixed stride: from a random start in training, from equally spaced starts in testing.

    The clip spans (T - 1) * stride + 1 frames. With m = n - span spare frames, test clip i of k starts at
    round(m * i / (k - 1)), and a single clip at m // 2. Frames past the end of a short video are its last frame.

    Args:
        num_frames: frames of the video, n >= 1.
        length: frames of the clip, T >= 1.
        stride: distance between two frames of the clip, in frames, >= 1.
        rng: source of the random start; None for testing.
        clip, num_clips: which of how many test clips.

    Raises:
        ValueError: n, T or stride below 1, or clip outside 0 ... num_clips - 1.
    """
    _check(num_frames, length, clip, num_clips)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}")
    spare = max(num_frames - ((length - 1) * stride + 1), 0)
    if rng is not None:
        start = rng.randint(0, spare)
    elif num_clips == 1:
        start = spare // 2
    else:
        start = round(spare * clip / (num_clips - 1))
    return _padded(range(start, num_frames, stride), num_frames, length)


def _padded(indices: range, num_frames: int, length: int) -> list[int]:
    chosen = list(indices[:length])
    return chosen + [num_frames - 1] * (length - len(chosen))


def _check(num_frames: int, length: int, clip: int, num_clips: int) -> None:
    if num_frames < 1 or length < 1:
        raise ValueError(f"a clip needs at least one frame: the video has {num_frames}, the clip {length}")
    if not 0 <= clip < num_clips:
        raise ValueError(f"clip must be one of 0 to {num_clips - 1}, not {clip}")
