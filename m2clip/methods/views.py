"""How a model is shown videos where nobody says otherwise."""

from __future__ import annotations

from typing import Any

from m2clip.data.clips import ClipSettings
from m2clip.errors import InputError


def default_settings(model: Any, **views: Any) -> ClipSettings:
    """How views are drawn: clips of the model's length and size, as the model's own views say, or the given fields.

    Args:
        model: a video model.
        views: fields of `ClipSettings` in place of the model's own.

    Raises:
        InputError: impossible fields.
    """
    own = {"num_frames": model.num_frames, "size": model.image_size}
    try:
        return ClipSettings(**{**getattr(model, "views", {}), **views, **own})
    except TypeError:
        known = ClipSettings.__dataclass_fields__
        unknown = next((name for name in views if name not in known), None)
        if unknown is None:
            raise
        raise InputError(f"{unknown!r} says nothing about views; choose from {', '.join(known)}") from None
