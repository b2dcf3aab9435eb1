"""m2clip: CLIP as a video action recogniser. Heavy libraries are imported only where they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip import drop_in, kernels
    from m2clip.adapters import TEDAdapter, TextAdapter
    from m2clip.checkpoints.adapters import load_adapters, save_adapters
    from m2clip.checkpoints.convert import load_authors_checkpoint
    from m2clip.data.memory import load_video
    from m2clip.drop_in import adapt
    from m2clip.methods import create_model
    from m2clip.prediction.streams import stream
    from m2clip.prediction.videos import predict
    from m2clip.towers.loading import load_clip

__version__ = "0.1.0"

_HOME = {
    "TEDAdapter": "m2clip.adapters",
    "TextAdapter": "m2clip.adapters",
    "adapt": "m2clip.drop_in",
    "create_model": "m2clip.methods",
    "load_clip": "m2clip.towers.loading",
    "load_video": "m2clip.data.memory",
    "predict": "m2clip.prediction.videos",
    "stream": "m2clip.prediction.streams",
    "save_adapters": "m2clip.checkpoints.adapters",
    "load_adapters": "m2clip.checkpoints.adapters",
    "load_authors_checkpoint": "m2clip.checkpoints.convert",
}

_MODULES = ("drop_in", "evaluate", "kernels", "matching", "methods", "train")

__all__ = [
    "InputError",
    "TEDAdapter",
    "TextAdapter",
    "__version__",
    "adapt",
    "create_model",
    "drop_in",
    "kernels",
    "load_adapters",
    "load_authors_checkpoint",
    "load_clip",
    "load_video",
    "predict",
    "save_adapters",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import m2clip` and the command line start quickly."""
    if name in _MODULES:
        return importlib.import_module(f"m2clip.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'm2clip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
