"""How a decoded frame is shown: turned, mirrored, and with pixels that are not square."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import av

# A pixel further from a square than this is a mistake in the file.
_MOST_STRETCH = 8

Matrix = tuple[int, int, int, int]


def display_matrix(frame: av.VideoFrame) -> Matrix | None:
    """(a, b, c, d) of a frame's display matrix, None without one: pixel (x, y) is shown at (a x + c y, b x + d y)."""
    side_data: Any = frame.side_data
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("9i", bytes(data)[:36])
            # All zero means that there is none.
            return (a, b, c, d) if a or b or c or d else None
    return None


class Upright:
    """Turns decoded frames into pictures as they are shown."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._to_rgb = VideoReformatter()  # one for all frames, each of which would otherwise make its own
        self._matrix: tuple[float, Matrix | None] | None = None

    def __call__(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """(3, H, W) uint8 of a frame that is scaled to a size and then turned and mirrored as it asks."""
        scaling = None if (width, height) == (frame.width, frame.height) else "BICUBIC"
        image = self._to_rgb.reformat(frame, width, height, "rgb24", interpolation=scaling).to_ndarray()
        if self._matrix is None or self._matrix[0] != frame.rotation:
            # Not of every frame: PyAV keeps one whose side data were looked at until garbage is collected.
            self._matrix = frame.rotation, display_matrix(frame)
        return turned(image.transpose(2, 0, 1), self._matrix[1])


def is_quarter_turn(frame: av.VideoFrame) -> bool:
    """Whether the display matrix of a frame turns it by quarters, or not at all, and does nothing else."""
    matrix = display_matrix(frame)
    if matrix is None:
        return True
    a, b, c, d = matrix
    return a == d and b == -c and 0 in (a, b)


def turned(image: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """(3, H, W) of a frame turned by quarters and mirrored as a display matrix says."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image = image.transpose(0, 2, 1)
        left, up = c < 0, b < 0
    else:
        left, up = a < 0, d < 0
    return image[:, :: -1 if up else 1, :: -1 if left else 1]


def displayed_size(width: int, height: int, pixel_shape: float) -> tuple[int, int]:
    """Width and height of a picture with square pixels that loses none of the given ones.

    Args:
        width: pixels in a row.
        height: pixels in a column.
        pixel_shape: width of a pixel over its height.
    """
    if not 1 / _MOST_STRETCH <= pixel_shape <= _MOST_STRETCH:
        return width, height
    if pixel_shape >= 1:
        return round(width * pixel_shape), height
    return width, round(height / pixel_shape)
