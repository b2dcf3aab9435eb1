"""Small ST-Adapters and AIMs, for tests."""

from __future__ import annotations

import torch

import m2clip
from m2clip.towers.prompts import PromptTokenizer
from tests.clips import NAMES, small_clip

METHODS = {"st_adapter": {"width": 8}, "aim": {"width": 6}}
VARIANTS = [
    ("st_adapter", {"placement": "pre_attn"}),
    ("st_adapter", {"placement": "pre_mlp"}),
    ("st_adapter", {"placement": "both"}),
    ("aim", {"preset": "k400"}),
    ("aim", {"preset": "ssv2"}),
    ("aim", {"preset": "paper"}),
    ("aim", {"temporal_embedding": False, "layers": "2-3"}),
]
SHARED = small_clip()  # never changed: models train tensors of their own
TOKENIZER = PromptTokenizer(SHARED.context_length)


def build(method, clip=SHARED, **options):
    torch.manual_seed(3)
    return m2clip.create_model(method, clip, NAMES, 4, tokenizer=TOKENIZER, **{**METHODS[method], **options})


def trained(model):
    return sum(tensor.numel() for tensor in model.trained_state_dict().values())
