"""m2clip: CLIP as a video action recogniser. Heavy libraries are imported only where they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from . import kernels
    from .adapters import TEDAdapter, TextAdapter
    from .checkpoint import load_adapters, save_adapters
    from .clip_loading import load_clip
    from .convert import load_authors_checkpoint
    from .methods import create_model

__version__ = "0.1.0"

_HOME = {
    "TEDAdapter": "m2clip.adapters",
    "TextAdapter": "m2clip.adapters",
    "create_model": "m2clip.methods",
    "load_clip": "m2clip.clip_loading",
    "save_adapters": "m2clip.checkpoint",
    "load_adapters": "m2clip.checkpoint",
    "load_authors_checkpoint": "m2clip.convert",
}

__all__ = [
    "InputError",
    "TEDAdapter",
    "TextAdapter",
    "__version__",
    "create_model",
    "kernels",
    "load_adapters",
    "load_authors_checkpoint",
    "load_clip",
    "save_adapters",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import m2clip` and the command line start quickly."""
    if name == "kernels":
        return importlib.import_module("m2clip.kernels")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'm2clip' has no attribute {name!r}")
