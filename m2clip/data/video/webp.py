"""Animated WebP, which FFmpeg does not decode."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2clip.data.video.base import Video, VideoError, check_length
from m2clip.data.video.pictures import open_picture, rgb
from m2clip.files.disk import open_regular


class WebPVideo(Video):
    """A WebP picture, animated or not; its frames are decoded one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self._image = open_picture(path, self._file)
            self._shown = _durations(path)
            self.num_frames = getattr(self._image, "n_frames", 1)
        except VideoError:
            self._file.close()
            raise
        except Exception as error:
            self._file.close()
            raise VideoError(f"{path}: not a readable WebP picture ({' '.join(str(error).split())})") from None
        seconds = sum(self._shown[: self.num_frames - 1]) / 1000
        self._timed = len(self._shown) == self.num_frames and seconds > 0
        self.fps = (self.num_frames - 1) / seconds if self._timed else math.nan

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        frames = np.empty((len(indices), *self._image.size[::-1], 3), np.uint8)
        for place, index in zip(frames, indices, strict=True):
            try:
                self._image.seek(index)
                place[...] = rgb(self._image)
            except Exception as error:
                what = " ".join(str(error).split())
                raise VideoError(
                    f"{self.path}: damaged: frame {index} of {self.num_frames} cannot be decoded ({what})"
                ) from None
        return frames.transpose(0, 3, 1, 2)

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        """Presentation times, as `Video.seconds`."""
        if not self._timed:
            return None
        starts = np.concatenate([[0], np.cumsum(self._shown)]) / 1000
        return [float(starts[index]) for index in indices]

    def close(self) -> None:
        """Release the file."""
        self._image.close()
        self._file.close()


def _durations(path: Path) -> list[int]:
    """How long the frames are shown, in milliseconds; of a lone picture, nothing."""
    found: list[int] = []
    place = 12
    with open_regular(path) as file:
        while True:
            file.seek(place)
            if len(head := file.read(24)) < 24:
                return found
            kind, size = struct.unpack_from("<4sI", head)
            if kind == b"ANMF":
                found.append(int.from_bytes(head[20:23], "little"))
                check_length(path, len(found))
            place += 8 + size + size % 2
