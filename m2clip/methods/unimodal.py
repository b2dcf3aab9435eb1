"""What ST-Adapter and AIM share: a frozen text side that nothing is trained by, and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.heads import ClassificationHead
from m2clip.losses import Losses
from m2clip.text import PromptTokenizer
from m2clip.towers import TextTower

from .base import VideoModel


class UnimodalModel(VideoModel):
    """A video classifier on CLIP's vision tower.

    Its answer is ``logits``, which hold for the class names it was built with and are None for others. ``similarity``,
    the cosines of the mean frame feature with the frozen class texts, is there so that every evaluation works: at the
    start it is frozen CLIP's, and nothing trains it to stay meaningful, because no loss looks at texts.
    """

    config: Any  # the method's options
    vc: ClassificationHead

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: Any,
        tokenizer: PromptTokenizer | None,
        head_std: float,
    ) -> None:
        """head_std: deviation of the classifier's weights at the start."""
        super().__init__(clip, class_names, num_frames, options.prompt, tokenizer)
        self.config = options
        self.text = TextTower(clip, {})
        self.vc = ClassificationHead(clip.visual.conv1.out_channels, len(self.class_names), options.dropout)
        nn.init.normal_(self.vc.fc.weight, std=head_std)
        nn.init.zeros_(self.vc.fc.bias)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        class_tokens = self.visual(video)
        frame_features = self.visual.project(class_tokens).float()
        logits = self.classify(class_tokens) if self.knows_labels else None
        return frame_features, frame_features.mean(dim=1), logits

    def classify(self, class_tokens: Tensor) -> Tensor:
        """Logits (B, C), of class tokens (B, T, D)."""
        return self.vc(self.class_feature(class_tokens).float())

    def class_feature(self, class_tokens: Tensor) -> Tensor:
        """What the classifier reads (B, D), of class tokens (B, T, D)."""
        raise NotImplementedError

    def loss(
        self,
        video: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Losses:
        """Cross-entropy of the classifier.

        Raises:
            InputError: if the class names were exchanged, because classifier and labels would no longer agree.
        """
        if not self.knows_labels:
            raise InputError("the class names were exchanged; training needs those the model was built with")
        logits = self.classify(self.visual(self._checked(video)))
        part = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        # What no loss reaches takes part with weight 0, so that DistributedDataParallel waits for none in vain.
        total = sum((parameter.flatten()[0] * 0 for parameter in self.without_gradient()), start=part)
        return Losses(total, {"vc": part.detach()})

    def without_gradient(self) -> list[nn.Parameter]:
        """Trained parameters that the loss does not reach."""
        return []

    def options(self) -> dict[str, Any]:
        return asdict(self.config)


def check_shares(options: Any, *names: str) -> None:
    """Options that are probabilities or shares.

    Raises:
        InputError: one that is not from 0 to below 1.
    """
    for name in names:
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}: it must be from 0 to below 1")
