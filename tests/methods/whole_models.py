"""A small model of every method, for tests of what all of them can do."""

from __future__ import annotations

import torch

import m2clip
from m2clip.towers.prompts import PromptTokenizer
from tests.clips import NAMES, randomise, small_clip

OPTIONS = {
    "m2clip": {"width": 8, "text_width": 8, "text_layers": 2, "text_placement": "both"},
    "msta": {"width": 8},
    "ma_fsar": {"tpcm_heads": 4},
    "st_adapter": {"width": 8},
    "aim": {"width": 6},
    "clip": {},
}
TOKENIZER = PromptTokenizer(77)


def build(method: str) -> m2clip.VideoModel:
    """A model with trained tensors away from their start, in evaluation mode."""
    torch.manual_seed(3)
    model = m2clip.create_model(method, small_clip(), NAMES, 4, tokenizer=TOKENIZER, **OPTIONS[method])
    randomise(model)
    return model.eval()
