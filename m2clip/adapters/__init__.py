"""Adapters as modules, usable in any vision or text transformer."""

from m2clip.adapters.ma_fsar import BlockLayout, MultimodalAdapters
from m2clip.adapters.msta import MSTAAdapter
from m2clip.adapters.ted import FrameFeatureAdapter, TEDAdapter
from m2clip.adapters.text import TextAdapter
from m2clip.adapters.unimodal import AIMAdapters, BottleneckAdapter, STAdapter

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
