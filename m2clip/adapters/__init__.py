"""Adapters as modules, usable in any vision or text transformer."""

from .msta import MSTAAdapter
from .ted import FrameFeatureAdapter, TEDAdapter
from .text import TextAdapter
from .unimodal import AIMAdapters, BottleneckAdapter, STAdapter

__all__ = [
    "AIMAdapters",
    "BottleneckAdapter",
    "FrameFeatureAdapter",
    "MSTAAdapter",
    "STAdapter",
    "TEDAdapter",
    "TextAdapter",
]
