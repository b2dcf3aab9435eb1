"""ST-Adapter (NeurIPS 2022): convolutions over the frames of patch tokens inside a frozen CLIP, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from m2clip.adapters import STAdapter
from m2clip.errors import InputError
from m2clip.methods.base import PLACEMENTS, layout_of, placed
from m2clip.methods.options import check_choices, check_shares
from m2clip.methods.unimodal import UnimodalModel
from m2clip.towers.block import layer_range
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.sources import open_vision
from m2clip.towers.vision import VisionTower


@dataclass
class STAdapterOptions:
    """Everything that distinguishes one ST-Adapter from another; defaults are its published model for Kinetics.

    Attributes:
        width: bottleneck width R.
        placement: "pre_attn", "pre_mlp" or "both" (before MHSA, before the FFN).
        layers: "all", "none" or a 1-based range such as "7-12".
        dropout: in front of the classifier.
        label_smoothing: of the classifier's loss.
        prompt: template of the class texts, which only ``similarity`` reads.
    """

    width: int = 384
    placement: str = "pre_mlp"
    layers: str = "all"
    dropout: float = 0.5
    label_smoothing: float = 0.0
    prompt: str = "a video of {}"

    def __post_init__(self) -> None:
        check_choices(("placement", self.placement, PLACEMENTS))
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
    FFN is there as in the published models, though behind it nothing reads patch tokens of a tower with a class token.

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
        stem, blocks = open_vision(clip)
        adapters = placed(
            layer_range(options.layers, len(blocks)),
            PLACEMENTS[options.placement],
            lambda block: STAdapter(stem.width, options.width, num_frames, **layout_of(stem)),
        )
        self.visual = VisionTower(clip, adapters)

    def class_feature(self, pooled: Tensor) -> Tensor:
        return self.visual.norm(pooled.mean(dim=1))

    def without_gradient(self) -> list[nn.Parameter]:
        last = self.visual.blocks[-1].pre_mlp
        return list(last.parameters()) if last is not None and self.visual.stem.reads_class_token else []
