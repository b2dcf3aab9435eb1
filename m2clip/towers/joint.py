"""ViCLIP's vision tower: one sequence for a whole clip, in which every token attends to every other one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.kernels import TimeLayout
from m2clip.towers.sources.open_clip_vit import OpenClipVision
from m2clip.towers.vision import VisionTower

EMBEDDING = "temporal_positional_embedding"  # (1, T, D), on the ``visual`` module of a CLIP that is a ViCLIP


def is_joint(clip: Any) -> bool:
    """Whether a CLIP's vision model is meant for whole clips."""
    return hasattr(getattr(clip, "visual", None), EMBEDDING)


class JointVisionTower(VisionTower):
    """A CLIP vision transformer over whole clips, one class token each; patches are ordered with time running fastest.

    Args and errors: see :class:`VisionTower`. visual is open_clip's own and also has a temporal embedding (1, T, D),
    which is interpolated linearly to clips of another length.

    Source: ViCLIP (InternVid, ICLR 2024), its published code.
    """

    stem: OpenClipVision
    temporal_positional_embedding: nn.Parameter

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__(visual, adapters)
        embedding = getattr(getattr(visual, "visual", visual), EMBEDDING)
        self.temporal_positional_embedding = embedding.requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """Class tokens (B, 1, D) after the last block, of a normalised video (B, T, 3, H, W)."""
        frames = video.shape[1]
        with torch.no_grad():
            x = self.embed_clips(video.to(self.dtype))
        return self.run_blocks(x, frames)[:, :1]

    def embed_clips(self, video: Tensor) -> Tensor:
        """Tokens (B, 1 + N*T, D) entering the first block, of clips (B, T, 3, height, width)."""
        (clips, frames), stem = video.shape[:2], self.stem
        patches = stem.conv1(video.flatten(0, 1)).flatten(2).transpose(1, 2) + stem.positional_embedding[1:]
        over_time = F.interpolate(self.temporal_positional_embedding.transpose(1, 2), frames, mode="linear")
        patches = patches.unflatten(0, (clips, frames)).transpose(1, 2) + over_time.transpose(1, 2)[:, None]
        class_tokens = (stem.class_embedding + stem.positional_embedding[0]).expand(clips, 1, -1)
        return stem.ln_pre(torch.cat([class_tokens, patches.flatten(1, 2)], dim=1))

    def time(self, frames: int) -> TimeLayout:
        return TimeLayout(frames, joint=True)
