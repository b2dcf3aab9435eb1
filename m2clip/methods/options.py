"""Checks of methods' options."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from m2clip.errors import InputError


def check_choices(*choices: tuple[str, Any, Collection[Any]]) -> None:
    """Options that are one of a few.

    Args:
        choices: (name, value, what there is to choose from).

    Raises:
        InputError: a value that is none of them.
    """
    for name, value, allowed in choices:
        if value not in allowed:
            raise InputError(f"{name}: {value!r} is none of {', '.join(map(str, allowed))}")


def check_shares(options: Any, *names: str) -> None:
    """Options that are probabilities or shares.

    Args:
        options: the method's options.
        names: of those that are.

    Raises:
        InputError: one that is not a number from 0 to below 1.
    """
    for name in names:
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name} is {value}: it must be from 0 to below 1")
