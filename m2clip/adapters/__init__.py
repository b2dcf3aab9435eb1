"""Adapters as modules, usable in any vision or text transformer."""

from .msta import MSTAAdapter
from .ted import FrameFeatureAdapter, TEDAdapter
from .text import TextAdapter

__all__ = ["FrameFeatureAdapter", "MSTAAdapter", "TEDAdapter", "TextAdapter"]
