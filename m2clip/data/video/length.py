"""How long a video is: its frame rate, and the number of frames that its header announces."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2clip.data.video.base import VideoError
from m2clip.data.video.packets import Packets

if TYPE_CHECKING:
    import av


def frame_rate(path: Path, stream: av.video.stream.VideoStream, num_frames: int, times: np.ndarray | None) -> float:
    """Frames per second on the mean, NaN of one frame.

    Args:
        path: the file, for messages.
        stream: its stream.
        num_frames: number of frames.
        times: when they are shown, in the stream's unit; None where that is unknown.

    Raises:
        VideoError: the frames have no times.
    """
    if num_frames == 1:
        return math.nan
    if times is not None and stream.time_base:
        seconds = float(int(times[-1] - times[0]) * stream.time_base)
        rate = (num_frames - 1) / seconds if seconds > 0 else 0.0
    else:
        rate = float(stream.average_rate or 0)
    if not rate > 0:
        raise VideoError(f"{path}: frame rate 0: its {num_frames} frames have no times of their own")
    return rate


def declared_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    found: Packets,
    times: np.ndarray | None,
    fps: float,
) -> int | None:
    """How many frames there would be if the file held all that its header says, None where it says nothing.

    Args:
        container: the open file.
        stream: its stream.
        found: the packets of the stream.
        times: when the frames are shown, in the stream's unit; None where that is unknown.
        fps: frames per second, NaN of one frame.
    """
    kinds = set(container.format.name.split(","))
    # The length of a transport stream is no more than the difference of its times.
    if times is None or math.isnan(fps) or kinds & {"mpegts", "mpeg"} or stream.time_base is None:
        return None
    start, end = 0.0, None
    if "matroska" in kinds:
        # Its times count from the start of the file, wherever the first frame is.
        start, end = float(int(times[0]) * stream.time_base), _clock(stream.metadata.get("DURATION", ""))
        if end is None and container.duration and len(container.streams) == 1:
            end = container.duration / 1_000_000
    elif stream.duration:
        end = float(stream.duration * stream.time_base)
    if end is None or not 0 < (end - start) * fps < 1e9:
        return None
    declared = round((end - start) * fps)
    if not stream.frames:
        return declared
    # The number of frames is announced as well. That of mp4 counts frames that the edit list takes out, while the
    # duration counts a last frame that stands still for long as if it were many; the duration of AVI is guessed from
    # the size of the file.
    if "avi" in kinds:
        # Frames that were left out when it was recorded are counted and have a time all the same.
        slots = max(found.slots, int(found.stamps[-1]) + 1)
        return round(len(times) * max(stream.frames / slots, 1))
    announced = len(times) + max(stream.frames - found.slots, 0)
    return min(declared, announced) if "mp4" in kinds else announced


def _clock(text: str) -> float | None:
    """Seconds of "HH:MM:SS.fraction", None where it is something else."""
    match = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,12})?)", text)
    return None if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
