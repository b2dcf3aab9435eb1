"""Architectures small enough for tests, known to open_clip by name as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def add_architectures(folder: Path) -> None:
    """Make small-ViT and small-ViT-quickgelu known, and small-ViT-worldwide, which has a tokenizer of its own."""
    own = {"vocab_size": 64, "hf_tokenizer_name": "nobody/small", "pool_type": "eos", "eos_id": 1}
    own["tokenizer_kwargs"] = {"clean": "canonicalize"}
    for name, changes in (
        ("small-ViT", {}),
        ("small-ViT-quickgelu", {"quick_gelu": True}),
        ("small-ViT-worldwide", {"text_cfg": SMALL["text_cfg"] | own}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(SMALL | changes))
    open_clip.add_model_config(folder)
