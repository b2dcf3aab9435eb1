"""AIM (ICLR 2023): CLIP's attention used again over frames, and bottleneck adapters beside all that is frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from m2clip.adapters import AIMAdapters
from m2clip.adapters.unimodal import DROPS
from m2clip.errors import InputError
from m2clip.methods.base import placed
from m2clip.methods.options import check_choices, check_shares
from m2clip.methods.unimodal import UnimodalModel
from m2clip.towers.aim import PLACE, AIMVisionTower
from m2clip.towers.block import layer_range
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.sources import open_vision


@dataclass
class AIMOptions:
    """Everything that distinguishes one AIM from another; defaults follow the paper, presets the authors' code.

    Attributes:
        width: bottleneck width; None for a quarter of the token width.
        layers: "all", "none" or a 1-based range such as "7-12".
        num_t_adapters: 1, or 2 with one in front of the attention over frames as well.
        joint_scale: s.
        temporal_embedding: whether there is one.
        drop_path: the last block's probability of leaving out its temporal and its joint branch, which grows from 0 in
            the first block in equal steps.
        drop_path_per: "clip", or "token" as the authors' code does it (see
            :class:`m2clip.adapters.unimodal.StochasticDepth`).
        train_ln_post: whether the classifier reads tokens through a trained copy of ln_post, as in the authors' code,
            instead of the frozen one. Towers without a norm behind their pooling have none to train.
        dropout: in front of the classifier.
        label_smoothing: of the classifier's loss.
        prompt: template of the class texts, which only ``similarity`` reads.
    """

    width: int | None = None
    layers: str = "all"
    num_t_adapters: int = 1
    joint_scale: float = 0.5
    temporal_embedding: bool = True
    drop_path: float = 0.2
    drop_path_per: str = "clip"
    train_ln_post: bool = False
    dropout: float = 0.5
    label_smoothing: float = 0.0
    prompt: str = "a video of {}"

    def __post_init__(self) -> None:
        check_choices(
            ("num_t_adapters", self.num_t_adapters, (1, 2)),
            ("drop_path_per", self.drop_path_per, DROPS),
        )
        if self.width is not None and self.width < 1:
            raise InputError("width must be at least 1, or None for a quarter of the token width")
        check_shares(self, "drop_path", "dropout", "label_smoothing")


_OFFICIAL = {"drop_path_per": "token", "train_ln_post": True}
PRESETS: dict[str, dict[str, Any]] = {
    "k400": _OFFICIAL,
    "ssv2": {**_OFFICIAL, "num_t_adapters": 2, "joint_scale": 1.0, "label_smoothing": 0.1},
    "paper": {},
}


class AIM(UnimodalModel):
    """AIM. See :class:`AIMOptions` for the options and :class:`VideoModel` for shapes.

    Trained are the adapters, the temporal embedding, the classifier and, with train_ln_post, the classifier's own copy
    of ln_post; CLIP itself is frozen. Features for ``similarity`` go through the frozen ln_post in any case.

    Source: AIM (ICLR 2023); presets "k400" and "ssv2" the authors' code, "paper" the equations with Kinetics' values.
    """

    method = "aim"

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: AIMOptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options, tokenizer, head_std=0.01)
        adapters = _adapters(clip, options)
        self.visual = AIMVisionTower(clip, adapters, num_frames if options.temporal_embedding else None)
        self.ln_post: Any = None  # a layer norm, or None
        own = self.visual.stem.ln_post
        if options.train_ln_post and any(True for _ in own.parameters()):
            # A copy, because training must not change the CLIP it is built on.
            self.ln_post = copy.deepcopy(own).float().train().requires_grad_(True)

    def class_feature(self, pooled: Tensor) -> Tensor:
        if self.ln_post is None:
            return self.visual.norm(pooled).mean(dim=1)
        return self.ln_post(pooled.to(next(self.ln_post.parameters()).dtype)).mean(dim=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the authors' recipe: all decays, biases too, except ln_post."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[not name.startswith("ln_post.")].append(parameter)
        return [
            {"name": name, "params": groups[decay], "lr_scale": 1.0, "weight_decay": decay}
            for name, decay in (("main", True), ("ln_post", False))
            if groups[decay]
        ]


def _adapters(clip: Any, options: AIMOptions) -> dict[int, dict[str, nn.Module]]:
    vision = open_vision(clip)
    dim, blocks = vision.stem.width, len(vision.blocks)

    def adapter(block: int) -> AIMAdapters:
        return AIMAdapters(
            dim,
            options.width or max(dim // 4, 1),
            num_t_adapters=options.num_t_adapters,
            joint_scale=options.joint_scale,
            drop_path=options.drop_path * block / max(blocks - 1, 1),
            per=options.drop_path_per,
        )

    return placed(layer_range(options.layers, blocks), (PLACE,), adapter)
