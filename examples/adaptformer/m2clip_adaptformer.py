"""AdaptFormer (NeurIPS 2022) as a method of m2clip, in a package of its own.

pip install ./examples/adaptformer, then `m2clip train --model.method adaptformer ...` and all other commands know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from m2clip.methods import Method
from m2clip.methods.base import placed
from m2clip.methods.unimodal import UnimodalModel
from m2clip.towers.block import Block, layer_range
from m2clip.towers.sources import open_vision
from m2clip.towers.vision import VisionTower


@dataclass
class AdaptFormerOptions:
    """Options of the method.

    Attributes:
        width: bottleneck width R.
        scale: factor s of what the adapter adds.
        layers: "all", "none" or a 1-based range of blocks such as "7-12".
        dropout: in front of the classifier.
        label_smoothing: of the classifier's loss.
        prompt: template of the class texts, which only `similarity` reads.
    """

    width: int = 64
    scale: float = 0.1
    layers: str = "all"
    dropout: float = 0.0
    label_smoothing: float = 0.0
    prompt: str = "a video of {}"


class AdaptFormerBlock(Block):
    """A frozen block with an adapter beside its FFN: x + FFN(LN(x)) + s ReLU(x W + b) V + a (Eqs. 2 and 3)."""

    def __init__(self, block: Any, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__(block, adapters)
        self.adapter: Any = adapters.get("beside_mlp")

    def mlp_half(self, x: Tensor) -> Tensor:
        y = super().mlp_half(x)
        return y if self.adapter is None or not self.switch.on else y + self.adapter(x)


class AdaptFormerTower(VisionTower):
    """CLIP's vision tower of such blocks, which are switched off with it."""

    block_type = AdaptFormerBlock

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__(visual, adapters)
        for block in self.blocks:
            block.switch = self.switch


class Scaled(nn.Sequential):
    """A bottleneck that starts as zero, times s."""

    def __init__(self, dim: int, width: int, scale: float) -> None:
        super().__init__(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
        self.scale = scale
        nn.init.zeros_(self[0].bias)
        nn.init.zeros_(self[2].weight)
        nn.init.zeros_(self[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class AdaptFormer(UnimodalModel):
    """AdaptFormer on every frame, and a classifier that reads the mean over frames."""

    method = "adaptformer"

    def __init__(
        self, clip: Any, class_names: Sequence[str], num_frames: int, options: AdaptFormerOptions, tokenizer: Any = None
    ) -> None:
        super().__init__(clip, class_names, num_frames, options, tokenizer, head_std=0.01)
        stem, blocks = open_vision(clip)
        layers = layer_range(options.layers, len(blocks))
        adapters = placed(layers, ("beside_mlp",), lambda block: Scaled(stem.width, options.width, options.scale))
        self.visual = AdaptFormerTower(clip, adapters)

    def class_feature(self, pooled: Tensor) -> Tensor:
        return self.visual.norm(pooled).mean(dim=1)


METHOD = Method(AdaptFormer, AdaptFormerOptions, {"paper": {}}, "paper")
