"""Foreign models taken apart: one file for each family, and the two functions that know which is which.

A family is opened by two functions, each of which returns None for a model of another family, and raises an InputError
that begins with what the model is where no tower can be made of it.
"""

from __future__ import annotations

from typing import Any

from m2clip.errors import InputError
from m2clip.sizes import size_text
from m2clip.towers.parts import Text, Vision


def open_vision(model: Any) -> Vision:
    """The vision side of a model, taken apart.

    Args:
        model: a CLIP of open_clip or transformers, the ``visual`` module of one of open_clip's, or what this function
            returned.

    Raises:
        InputError: a model that cannot be taken apart, with the reason.
    """
    from m2clip.towers.sources.open_clip_vit import open_clip_vision
    from m2clip.towers.sources.timm_vit import timm_vision
    from m2clip.towers.sources.transformers_clip import transformers_vision

    if isinstance(model, Vision):
        return model
    visual = getattr(model, "visual", model)
    for opener in (open_clip_vision, timm_vision, transformers_vision):
        found = opener(visual)
        if found is not None:
            if 0 in found.stem.grid:
                raise InputError(f"images of {size_text(found.stem.image_size)} pixels are smaller than a patch")
            return found
    raise InputError(f"vision models of type {type(visual).__name__} are not supported: use a CLIP ViT")


def open_text(model: Any) -> Text:
    """The text side of a model, taken apart.

    Args:
        model: a CLIP of open_clip or transformers, or what this function returned.

    Raises:
        InputError: a model that cannot be taken apart, with the reason.
    """
    from m2clip.towers.sources.open_clip_text import open_clip_text
    from m2clip.towers.sources.transformers_clip import transformers_text

    if isinstance(model, Text):
        return model
    for opener in (open_clip_text, transformers_text):
        found = opener(model)
        if found is not None:
            return found
    raise InputError(f"the text side of {type(model).__name__} is not supported: use a CLIP of open_clip")
