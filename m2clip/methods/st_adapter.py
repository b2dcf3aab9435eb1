"""ST-Adapter (NeurIPS 2022): convolutions over the frames of patch tokens inside a frozen CLIP, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from m2clip.adapters import STAdapter
from m2clip.errors import InputError
from m2clip.text import PromptTokenizer
from m2clip.towers import VisionTower, layer_range

from .unimodal import UnimodalModel, check_shares

PLACEMENTS = {"pre_attn": ("pre_attn",), "pre_mlp": ("pre_mlp",), "both": ("pre_attn", "pre_mlp")}


@dataclass
class STAdapterOptions:
    """Everything that distinguishes one ST-Adapter from another; defaults are its published model for Kinetics.

    width R of the adapters; placement "pre_attn", "pre_mlp" or "both" (before MHSA, before the FFN); layers "all",
    "none" or a 1-based range such as "7-12"; dropout in front of the classifier; label_smoothing of its loss;
    prompt: the template of the class texts, which only ``similarity`` reads.
    """

    width: int = 384
    placement: str = "pre_mlp"
    layers: str = "all"
    dropout: float = 0.5
    label_smoothing: float = 0.0
    prompt: str = "a video of {}"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise InputError(f"placement: {self.placement!r} is none of {', '.join(PLACEMENTS)}")
        if self.width < 1:
            raise InputError("width must be at least 1")
        check_shares(self, "dropout", "label_smoothing")


PRESETS: dict[str, dict[str, Any]] = {
    "12x384": {},
    "24x384": {"placement": "both"},
}


class STAdapterModel(UnimodalModel):
    """ST-Adapter. See :class:`STAdapterOptions` for the options and :class:`VideoModel` for shapes.

    Trained are the adapters and the classifier; the tower is frozen, ln_post with it. The adapter in front of the last
    FFN is there as in the published models, though nothing reads patch tokens behind it.

    Source: ST-Adapter (NeurIPS 2022) and its code; presets are named as there, adapters x width.
    """

    method = "st_adapter"

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: STAdapterOptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options, tokenizer, head_std=0.02)
        dim, blocks = clip.visual.conv1.out_channels, len(clip.visual.transformer.resblocks)
        adapters: dict[int, dict[str, nn.Module]] = {
            i: {
                place: STAdapter(dim, options.width, num_frames, grid=tuple(clip.visual.grid_size))
                for place in PLACEMENTS[options.placement]
            }
            for i in layer_range(options.layers, blocks)
        }
        self.visual = VisionTower(clip.visual, adapters)

    def class_feature(self, class_tokens: Tensor) -> Tensor:
        return self.visual.ln_post(class_tokens.mean(dim=1))

    def without_gradient(self) -> list[nn.Parameter]:
        last = self.visual.blocks[-1].pre_mlp
        return [] if last is None else list(last.parameters())
