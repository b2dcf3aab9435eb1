"""CLIP's vision tower, opened: every frame of a clip on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.kernels import TimeLayout
from m2clip.towers.block import Block, Tower
from m2clip.towers.parts import VisionStem
from m2clip.towers.sources import open_text, open_vision


class VisionTower(Tower):
    """A vision transformer over the frames of clips.

    Args:
        visual: what :func:`m2clip.towers.sources.open_vision` takes; its weights are shared and frozen.
        adapters: per block index (0-based) the adapters by place, see :class:`Block`; those before a half take (tokens,
            num_frames).

    Raises:
        InputError: a vision model that cannot be taken apart.
    """

    stem: VisionStem

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        self.stem, blocks = open_vision(visual)
        self.add_blocks(blocks, adapters)

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen weights are kept in."""
        return self.stem.dtype

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.stem.image_size

    def forward(self, video: Tensor) -> Tensor:
        """Pooled tokens (B, T, D_p) after the last block, of a normalised video (B, T, 3, H, W).

        Where pooling reads the class token, that is the class token.
        """
        frames = video.shape[1]
        with torch.no_grad():
            x = self.embed(video.flatten(0, 1).to(self.dtype))
        return self.stem.pool(self.run_blocks(x, frames)).unflatten(0, (-1, frames))

    def run_blocks(self, x: Tensor, frames: int) -> Tensor:
        """Tokens after the last block of the first one's (S, L, D): all, or (S, 1, D) where only the first is read."""
        last = len(self.blocks) - 1 if self.stem.reads_class_token else None
        for i, block in enumerate(self.blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_adapted):
                x = self.keep_or_recompute(i, self._block, block, x, frames, i == last)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (N, P + H*W, D) entering the first block, of images (N, 3, height, width)."""
        return self.stem.embed(images)

    def _block(self, block: Block, x: Tensor, frames: int, last: bool) -> Tensor:
        x = self.adapt(block.pre_attn, x, frames)
        queries = normalised = block.ln_1(x)
        if last:  # only the class token is read after the last block, so only it asks
            x, queries = x[:, :1], normalised[:, :1]
        mixed = x + block.ls_1(block.attend(queries, normalised))
        output = block.mlp_half(self.adapt(block.pre_mlp, mixed, frames))
        if block.parallel is None or not self.switch.on:
            return output
        return block.beside(x, queries, output, self.time(frames))

    def time(self, frames: int) -> TimeLayout:
        """Where the frames of a clip are among the tokens of a block."""
        return TimeLayout(frames)

    def norm(self, pooled: Tensor) -> Tensor:
        """Pooled tokens (..., D_p) as classifiers read them."""
        return self.stem.ln_post(pooled)

    def project(self, pooled: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of pooled tokens (..., D_p)."""
        return self.stem.project(pooled)


class TimedVisionTower(VisionTower):
    """A vision transformer that can tell the frames of a clip by a trained temporal embedding.

    Args:
        visual: see :class:`VisionTower`.
        adapters: see there.
        num_frames: T of the embedding, which is added to all tokens of a frame in front of the first norm and starts at
            zero; None for none.

    Source: AIM (ICLR 2023); the place of the embedding is that of its code.
    """

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]], num_frames: int | None) -> None:
        super().__init__(visual, adapters)
        self.temporal_embedding: nn.Parameter | None = None
        if num_frames is not None:
            self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, self.stem.width))
            self.first_adapted = 0

    def forward(self, video: Tensor) -> Tensor:
        frames = video.shape[1]
        return self.stem.pool(self.run_blocks(self.embed_clips(video), frames)).unflatten(0, (-1, frames))

    def embed_clips(self, video: Tensor) -> Tensor:
        """Tokens (B*T, P + H*W, D) entering the first block, of clips (B, T, 3, height, width)."""
        images = video.flatten(0, 1).to(self.dtype)
        if self.temporal_embedding is None or not self.switch.on:
            with torch.no_grad():
                return self.embed(images)
        return self.stem.embed(images, self.temporal_embedding[0])


def tower_signature(clip: Any) -> dict[str, Any]:
    """What a CLIP's towers must have in common with those the adapters were trained on."""
    vision, text = open_vision(clip), open_text(clip)
    return {
        "image_size": list(vision.stem.image_size),
        "patch_size": list(vision.stem.patch_size),
        "vision_width": vision.stem.width,
        "vision_layers": len(vision.blocks),
        "text_width": text.stem.width,
        "text_layers": len(text.blocks),
        "joint_width": vision.stem.feature_width,
        "activation": activation_name(vision),
        **vision.stem.facts,
        **text.stem.facts,
    }


def activation_name(vision: Any) -> str:
    """The class of the activation in a transformer's MLPs, or of its MLPs where they are of another kind."""
    block = vision.blocks[0]
    return type(block.mlp if block.mlp_names is None else getattr(block.mlp, block.mlp_names[1])).__name__
