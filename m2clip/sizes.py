"""Sizes of pictures: one number for square ones, or (height, width), in this order everywhere."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from m2clip.errors import InputError

Size: TypeAlias = int | tuple[int, int]  # of square pictures, or (height, width), in pixels
AnySize: TypeAlias = int | str | Sequence[int]  # as users write it
MOST = 8192  # of a side
_WRITTEN = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


def sides(size: Any, name: str = "image_size") -> tuple[int, int]:
    """(height, width), in pixels, of a size that a user gives.

    Args:
        size: one number, two of them, or either as text: "224" or "224x320".
        name: of what is given, for the message.

    Raises:
        InputError: something else, or a side that is not from 1 to `MOST`.
    """
    numbers = size
    if isinstance(size, str):
        found = _WRITTEN.fullmatch(size)
        numbers = [int(number) for number in found.groups() if number is not None] if found else []
    elif not isinstance(size, Sequence):
        numbers = [size]
    try:
        if len(numbers) not in (1, 2) or any(isinstance(number, bool) for number in numbers):
            raise TypeError
        height, width = operator.index(numbers[0]), operator.index(numbers[-1])
    except TypeError:
        # Not of a list, which may be long, or hold a number that Python does not write.
        shown = f" is {size!r}" if isinstance(size, str | float) and len(str(size)) < 40 else ""
        raise InputError(f"{name}{shown}: write one number, or height and width as in 224x320, in pixels") from None
    if not (1 <= height <= MOST and 1 <= width <= MOST):
        raise InputError(f"{name}: height and width must be from 1 to {MOST} pixels each")
    return height, width


def plain_size(size: Any, name: str = "image_size") -> Size:
    """The size in its one form: a number where height and width are equal, else (height, width); errors of `sides`."""
    height, width = sides(size, name)
    return height if height == width else (height, width)


def size_text(size: Size) -> str:
    """A size as it is shown and saved: "224x320", height first."""
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"
