"""Parts of videos: from which second to which, as lists give them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d(?:\.\d*)?)")
_SECONDS = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)


class Segment(NamedTuple):
    """A part of a video: its frames that are shown at `start` or later, and before `end`.

    Attributes:
        start: in seconds after the first frame of the video.
        end: likewise.
    """

    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.tag} s"

    @property
    def tag(self) -> str:
        """Start and end as exact numbers, such as 12.5-14."""
        return "-".join(map(seconds_text, self))

    @property
    def problem(self) -> str | None:
        """What is wrong with it, whatever the video; None where nothing is."""
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            return f"the segment {self} has a time that is no number"
        if self.start < 0:
            return f"the segment {self} starts before the video"
        if self.end <= self.start:
            return f"the segment {self} is empty: its end must be after its start"
        return None


def seconds_text(seconds: float) -> str:
    """A number that is read as the same again, without a fraction of zeros."""
    return repr(seconds).removesuffix(".0")


def parse_seconds(text: str) -> float | None:
    """A time as people write it, 83.5 or 1:23.5 or 0:01:23.5, in seconds, or NaN or infinity; None for other texts."""
    if (clock := _CLOCK.fullmatch(text)) is not None:
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    return float(text) if _SECONDS.fullmatch(text) else None
