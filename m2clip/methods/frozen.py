"""Frozen CLIP on video: the mean of its frame features against the class texts. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from m2clip.errors import InputError
from m2clip.losses import Losses
from m2clip.text import PromptTokenizer
from m2clip.towers import TextTower, VisionTower

from .base import VideoModel


@dataclass
class FrozenOptions:
    """prompt: template of the class texts, "{}" standing for the class name."""

    prompt: str = "a video of {}"


class FrozenCLIP(VideoModel):
    """CLIP without anything added. See :class:`VideoModel` for shapes. Source: CLIP (Radford et al. 2021)."""

    method = "clip"

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: FrozenOptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options.prompt, tokenizer)
        self.config = options
        self.visual, self.text = VisionTower(clip.visual, {}), TextTower(clip, {})

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        frame_features = self.visual.project(self.visual(video)).float()
        return frame_features, frame_features.mean(dim=1), None

    def loss(
        self,
        video: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Losses:
        raise InputError('frozen CLIP (method "clip") has nothing to train; choose another method such as "m2clip"')

    def options(self) -> dict[str, Any]:
        return asdict(self.config)
