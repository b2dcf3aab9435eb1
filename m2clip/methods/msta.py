"""MSTA (CVPR 2025): adapters beside the blocks of both towers that share a projection, and a consistency constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.adapters import MSTAAdapter
from m2clip.errors import InputError
from m2clip.methods.base import VideoModel
from m2clip.methods.descriptions import load_descriptions
from m2clip.methods.losses import cosine_loss, is_plain
from m2clip.methods.options import check_choices, check_shares
from m2clip.methods.results import LabelSet
from m2clip.towers.block import layer_range
from m2clip.towers.joint import JointVisionTower, is_joint
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.sources import open_text, open_vision
from m2clip.towers.text import TextTower
from m2clip.towers.vision import VisionTower

TOWERS = ("visual", "text")
_SENTENCES_AT_ONCE = 256


@dataclass
class MSTAOptions:
    """Everything that distinguishes one MSTA from another; defaults follow the paper.

    Attributes:
        width: bottleneck width d.
        layers: "all", "none" or a 1-based range of the vision tower's blocks such as "8-12"; the text tower's are
            counted from its end like them.
        scale: lambda, by which an adapter's output is multiplied.
        temporal_up: "grouped" or "dw_after_up", the two readings of the temporal up-projection.
        adapter_prenorm: "ln_1" or "none".
        rescale_adapter_grad: whether the adapters' gradients are divided by scale.
        towers: which have adapters: "visual", "text".
        share: whether the two adapters of a depth share their middle projection.
        alpha: weight of the consistency loss.
        descriptions: two files, of spatial and of temporal sentences, or names of bundled ones; they are needed to
            train with alpha above 0, not to use a trained model.
        label_smoothing: of the cross-entropy.
        prompt: template of the class texts.
    """

    width: int = 256
    layers: str = "all"
    scale: float = 0.005
    temporal_up: str = "grouped"
    adapter_prenorm: str = "ln_1"
    rescale_adapter_grad: bool = False
    towers: tuple[str, ...] = TOWERS
    share: bool = True
    alpha: float = 1.0
    descriptions: tuple[str, ...] | None = None
    label_smoothing: float = 0.0
    prompt: str = "a video of {}."

    def __post_init__(self) -> None:
        self.towers = tuple(self.towers)
        self.descriptions = None if self.descriptions is None else tuple(self.descriptions)
        check_choices(
            ("temporal_up", self.temporal_up, ("grouped", "dw_after_up")),
            ("adapter_prenorm", self.adapter_prenorm, ("ln_1", "none")),
            *(("towers", tower, TOWERS) for tower in self.towers),
        )
        check_shares(self, "label_smoothing")
        if self.width < 1 or self.alpha < 0 or self.scale < 0:
            raise InputError("width must be at least 1, scale and alpha at least 0")
        if self.rescale_adapter_grad and self.scale == 0:
            raise InputError("rescale_adapter_grad divides by scale, which is 0")
        if self.descriptions is not None and len(self.descriptions) != 2:
            raise InputError("descriptions takes two files: spatial sentences, then temporal ones")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_fewshot": {"layers": "8-12"},
    "early": {"layers": "8-12", "width": 128},
}


class MSTA(VideoModel):
    """MSTA on a per-frame CLIP or on ViCLIP. See :class:`MSTAOptions` and, for shapes, :class:`VideoModel`.

    With ViCLIP, which has one class token for a clip, frame_features hold that one, (B, 1, D_vl).

    Source: MSTA (CVPR 2025); presets "paper" and "paper_fewshot" as published, "early" the authors' earlier runs.
    """

    method = "msta"

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: MSTAOptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options, tokenizer)
        visual, text = _adapters(clip, options)
        tower = JointVisionTower if is_joint(clip) else VisionTower
        self.visual, self.text = tower(clip, visual), TextTower(clip, text)
        self._described: Tensor | None = None

    @property
    def weighs_classes(self) -> bool:
        return True

    @property
    def loss_kernels(self) -> tuple[str, ...]:
        return ("cosine_cross_entropy",) if is_plain(self.config.label_smoothing, self.class_weights) else ()

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        frame_features = at_least_fp32(self.visual.project(self.visual(video)))
        return frame_features, frame_features.mean(dim=1), None

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy over the class texts, and alpha times the consistency of these texts with descriptions."""
        video_features = self.encode(video)[1]
        text_features = at_least_fp32(self.text_features(names))
        how = self.config.label_smoothing, self.class_weights
        parts = {"ce": cosine_loss(video_features, text_features, labels, self.cosine_scale, *how)}
        total = parts["ce"]
        if self.config.alpha > 0:
            parts["cc"] = consistency_loss(text_features, self.described_features())
            total = total + self.config.alpha * parts["cc"]
        return parts, total

    def described_features(self) -> Tensor:
        """(2, C, D_vl): mean unit features of each class's spatial and temporal sentences, by the frozen text tower.

        Raises:
            InputError: no descriptions, or files that do not describe all classes.
        """
        found = self._described
        if found is None or found.device != self.text.stem.device:
            if self.config.descriptions is None:
                raise InputError(
                    "MSTA's consistency loss needs descriptions of the classes: set the option descriptions "
                    "(m2clip describe writes files to fill in), or alpha to 0"
                )
            kinds = [load_descriptions(source, self.trained_class_names) for source in self.config.descriptions]
            found = self._described = torch.stack([self._mean_features(sentences) for sentences in kinds])
        return found

    @torch.no_grad()
    def _mean_features(self, described: Sequence[Sequence[str]]) -> Tensor:
        """(C, D_vl) of each class's sentences."""
        prompts = self.tokenizer.batch([sentence.split() for sentences in described for sentence in sentences])
        prompts = prompts.to(self.text.stem.device)
        with self.adapters_disabled("text"):
            features = torch.cat(
                [
                    at_least_fp32(self.text.project(self.text(tokens, positions)[:, 0]))
                    for tokens, positions in zip(
                        prompts.tokens.split(_SENTENCES_AT_ONCE),
                        prompts.positions.split(_SENTENCES_AT_ONCE),
                        strict=True,
                    )
                ]
            )
        unit = F.normalize(features, dim=-1).split([len(sentences) for sentences in described])
        return torch.stack([rows.mean(dim=0) for rows in unit])

    def fill_caches(self) -> None:
        super().fill_caches()
        if self.config.alpha > 0 and self.knows_labels and self.config.descriptions is not None:
            self.described_features()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.one_group()


def consistency_loss(text_features: Tensor, described: Tensor) -> Tensor:
    """Mean over classes of 2 - cos(w, D_spatial) - cos(w, D_temporal).

    Args:
        text_features: w, (C, D_vl). described: (2, C, D_vl), without gradient.
    """
    return (1 - F.cosine_similarity(text_features, described, dim=-1)).sum(dim=0).mean()


def _adapters(
    clip: Any, options: MSTAOptions
) -> tuple[dict[int, dict[str, nn.Module]], dict[int, dict[str, nn.Module]]]:
    """Adapters of both towers by block; blocks at the same distance from the end share their middle projection."""
    sides: dict[str, Any] = {"visual": open_vision(clip), "text": open_text(clip)}
    dims = {name: side.stem.width for name, side in sides.items()}
    depths = {name: len(side.blocks) for name, side in sides.items()}
    if "text" in options.towers and depths["text"] == 0:
        raise InputError("this CLIP's text model is one whole without places for adapters: set towers to visual")
    wanted = {depths["visual"] - i for i in layer_range(options.layers, depths["visual"])}
    if options.layers == "all":
        wanted |= set(range(1, depths["text"] + 1))
    found: dict[str, dict[int, dict[str, nn.Module]]] = {tower: {} for tower in TOWERS}
    for from_end in sorted(wanted, reverse=True):
        shared = nn.Linear(options.width, options.width)
        for tower in options.towers:
            if from_end <= depths[tower]:
                module = MSTAAdapter(
                    dims[tower],
                    shared if options.share else nn.Linear(options.width, options.width),
                    temporal_up=options.temporal_up if tower == "visual" else "none",
                    scale=options.scale,
                    prenorm=options.adapter_prenorm == "ln_1",
                    rescale_gradient=options.rescale_adapter_grad,
                )
                found[tower][depths[tower] - from_end] = {"parallel": module}
    return found["visual"], found["text"]
