"""Every architecture of open_clip is refused with a reason, or its towers give what the library's model gives.

By default a sample with one of each family runs; M2CLIP_ALL_ARCHITECTURES=1 runs all, which takes some minutes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from m2clip.errors import InputError
from m2clip.towers.text import TextTower
from m2clip.towers.vision import VisionTower, tower_signature
from tests.towers import architectures

ALL = os.environ.get("M2CLIP_ALL_ARCHITECTURES") == "1"
SAMPLE = (
    "ViT-B-32-quickgelu",
    "ViT-M-16-alt",  # layer scale
    "ViT-L-14-worldwide",  # end token of another vocabulary
    "ViT-H-14-worldwide-quickgelu",  # MetaCLIP 2
    "ViT-L-14-CLIPA",  # average, no norm in front, text without a causal mask
    "coca_ViT-B-32",  # attention pooling, class token behind the text
    "coca_base",
    "ViT-B-16-SigLIP",  # attention pooling, no class token
    "ViT-SO400M-16-SigLIP-i18n-256",
    "ViT-B-32-SigLIP2-256",
    "EVA01-g-14",
    "EVA02-B-16",  # rotary embedding, SwiGLU
    "EVA02-E-14",  # norms behind the halves
    "PE-Core-T-16-384",  # rotary embedding and attention pooling
    "PE-Core-B-16",
    "MobileCLIP-B",  # convolutions in front
    "MobileCLIP2-L-14",  # text without a causal mask, read at its end
    "ViTamin-S",
    "vit_medium_patch16_gap_256",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "coca_roberta-ViT-B-32",
    "RN50",
    "convnext_base",
    "MobileCLIP-S1",
    "swin_base_patch4_window7_224",
    "vit_relpos_medium_patch16_cls_224",
)
# Beginnings of the names of those that have no transformer for all of their vision side, or attention with biases.
REFUSED = ("RN", "convnext", "MobileCLIP-S", "MobileCLIP2-S", "swin", "vit_relpos")
ACCEPTED = 115


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def some_tokens(stem: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of different lengths, and which of their tokens are read."""
    tokens = torch.randint(5, 400, (2, stem.context_length), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((4, 7)):
        tokens[row, length] = 500 if stem.end is None else stem.end
        tokens[row, length + 1 :] = getattr(stem, "pad_id", 0)
    return tokens, torch.tensor([[4], [7]]) if stem.read is None else torch.full((2, 1), stem.read)


@pytest.mark.parametrize("name", architectures.names() if ALL else SAMPLE)
def test_towers_are_the_library_s_or_refused(name: str, tmp_path: Path) -> None:
    clip = architectures.shallow_clip(name, tmp_path)
    if name.startswith(REFUSED):
        with pytest.raises(InputError, match="is not supported|are not supported") as refused:
            tower_signature(clip)
        assert "\n" not in str(refused.value)
        return
    vision, text = VisionTower(clip, {}), TextTower(clip, {})
    images = torch.randn(1, 3, *vision.image_size, generator=torch.Generator().manual_seed(0))
    tokens, positions = some_tokens(text.stem)
    with torch.no_grad():
        expected = clip.encode_image(images), clip.encode_text(tokens)
        found = vision.project(vision(images[None]))[0], text.project(text(tokens, positions)[:, 0])
    if type(clip).__name__ == "CoCa":  # whose features are normalised
        found = F.normalize(found[0], dim=-1), F.normalize(found[1], dim=-1)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) <= 1e-5


def test_as_many_architectures_are_accepted_as_the_documentation_says() -> None:
    accepted = [name for name in architectures.names() if not name.startswith(REFUSED)]
    text = Path(__file__).parents[2].joinpath("docs", "models.md").read_text()
    assert len(accepted) == ACCEPTED and f"{ACCEPTED} of {len(architectures.names())}" in text
