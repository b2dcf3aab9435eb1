"""Adapters as modules, usable in any vision or text transformer."""

from .ma_fsar import BlockLayout, MultimodalAdapters
from .msta import MSTAAdapter
from .ted import FrameFeatureAdapter, TEDAdapter
from .text import TextAdapter
from .unimodal import AIMAdapters, BottleneckAdapter, STAdapter

__all__ = [
    "AIMAdapters",
    "BlockLayout",
    "BottleneckAdapter",
    "FrameFeatureAdapter",
    "MSTAAdapter",
    "MultimodalAdapters",
    "STAdapter",
    "TEDAdapter",
    "TextAdapter",
]
