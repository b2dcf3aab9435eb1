"""A small MA-FSAR, its episodes, and random features of them."""

from __future__ import annotations

import torch

import m2clip
from m2clip.data.episodes import EpisodeShape
from tests.clips import NAMES, small_clip

T = 4
SHAPE = EpisodeShape(way=3, shots=2, queries=2)
CLASSES = [4, 0, 2]
LABELS = torch.tensor([c for c in CLASSES for _ in range(2)] * 2)  # support and queries of SHAPE


def make(clip=None, seed=0, **options):
    torch.manual_seed(seed)
    model = m2clip.create_model("ma_fsar", clip or small_clip(), NAMES, T, **{"tpcm_heads": 4, **options})
    model.episode = SHAPE
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def features(model, shape=SHAPE, episodes=3):
    """Random features of episodes: support, query, text."""
    generator, dim = torch.Generator().manual_seed(3), model.tower["joint_width"]
    sizes = (
        (episodes, shape.way, shape.shots, T, dim),
        (episodes, shape.way * shape.queries, T, dim),
        (episodes, shape.way, dim),
    )
    return tuple(torch.randn(size, generator=generator) for size in sizes)
