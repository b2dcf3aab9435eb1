"""Frozen CLIP on video: the mean of its frame features against the class texts. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from m2clip.errors import InputError
from m2clip.methods.base import VideoModel
from m2clip.methods.results import LabelSet
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.text import TextTower
from m2clip.towers.vision import VisionTower

UNTRAINED = 'frozen CLIP (method "clip") has nothing to train; choose another method such as "m2clip"'


@dataclass
class FrozenOptions:
    """Options of frozen CLIP.

    Attributes:
        prompt: template of the class texts, "{}" standing for the class name.
    """

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
        super().__init__(clip, class_names, num_frames, options, tokenizer)
        self.visual, self.text = VisionTower(clip, {}), TextTower(clip, {})

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        frame_features = at_least_fp32(self.visual.project(self.visual(video)))
        return frame_features, frame_features.mean(dim=1), None

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        raise InputError(UNTRAINED)
