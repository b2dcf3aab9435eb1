"""What ST-Adapter and AIM share: a frozen text side that nothing is trained by, and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from m2clip.methods.base import VideoModel
from m2clip.methods.heads import ClassificationHead
from m2clip.methods.losses import classification_loss
from m2clip.methods.results import LabelSet
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.sources import open_vision
from m2clip.towers.text import TextTower


class UnimodalModel(VideoModel):
    """A video classifier on CLIP's vision tower.

    Its answer is ``logits``, which hold for the class names it was built with and are None for others. ``similarity``,
    the cosines of the mean frame feature with the frozen class texts, is there so that every evaluation works: at the
    start it is frozen CLIP's, and nothing trains it to stay meaningful, because no loss looks at texts.
    """

    @property
    def weighs_classes(self) -> bool:
        return True

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
        """As :class:`VideoModel`.

        Args:
            clip: see there.
            class_names: see there.
            num_frames: see there.
            options: see there, and dropout and label_smoothing of the classifier.
            tokenizer: see there.
            head_std: deviation of the classifier's weights at the start.
        """
        super().__init__(clip, class_names, num_frames, options, tokenizer)
        self.text = TextTower(clip, {})
        self.vc = ClassificationHead(open_vision(clip).stem.pooled_width, len(self.class_names), options.dropout)
        nn.init.normal_(self.vc.fc.weight, std=head_std)
        nn.init.zeros_(self.vc.fc.bias)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        pooled = self.visual(video)
        frame_features = at_least_fp32(self.visual.project(pooled))
        return frame_features, frame_features.mean(dim=1), self.classify(pooled)

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits (B, C), of pooled tokens (B, T, D_p)."""
        return self.vc(self.class_feature(pooled))

    def class_feature(self, pooled: Tensor) -> Tensor:
        """What the classifier reads (B, D_p), of pooled tokens (B, T, D_p)."""
        raise NotImplementedError

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy of the classifier."""
        logits = self.classify(self.visual(video))
        part = classification_loss(logits, labels, self.config.label_smoothing, self.class_weights)
        # What no loss reaches takes part with weight 0, so that DistributedDataParallel does not wait for it.
        return {"vc": part}, sum((parameter.flatten()[0] * 0 for parameter in self.without_gradient()), start=part)

    def without_gradient(self) -> list[nn.Parameter]:
        """Trained parameters that the loss does not reach."""
        return []
