"""A model and a data set whose scores are written in the pixels, so that a test knows every answer beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.data.clips import ClipSettings
from m2clip.data.lists.annotations import Annotations, VideoItem

SIDE = 8


class PixelModel(nn.Module):
    """Frame 0 holds the logits of the VC head and frame 1 the similarities, in their first C numbers."""

    method = "m2clip"
    prompt = "a video of {}"
    num_frames = 2
    image_size = (SIDE, SIDE)

    def __init__(self, class_names: list[str], with_head: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.trained_names = self.class_names = list(class_names)
        self.with_head = with_head
        self.switched_off: list[tuple[str, ...]] = []
        self.batches: list[int] = []

    def with_class_names(self, names: list[str] | None) -> PixelModel:
        twin = copy.copy(self)
        twin.class_names = self.class_names if names is None else list(names)
        return twin

    @contextmanager
    def adapters_disabled(self, *which: str) -> Iterator[None]:
        self.switched_off.append(which)
        yield

    def forward(self, video: Tensor) -> Any:
        assert not self.training and not torch.is_grad_enabled()
        self.batches.append(len(video))
        numbers = video.flatten(2)[:, :, : len(self.class_names)] * self.weight
        head = self.with_head and self.class_names == self.trained_names
        return SimpleNamespace(logits=numbers[:, 0] if head else None, similarity=numbers[:, 1])


class PixelVideos:
    """Videos of given scores (N, V, 2, C): V views of logits and similarities; `broken` ones cannot be read."""

    def __init__(
        self, scores: Tensor, labels: list[int], class_names: list[str] | None, broken: tuple[int, ...] = ()
    ) -> None:
        items = tuple(VideoItem(Path(f"videos/{index}.mp4"), label) for index, label in enumerate(labels))
        self.annotations = Annotations(items, class_names, "list", Path("videos/list.txt"))
        self.scores, self.broken = scores, broken
        self.settings = ClipSettings(num_frames=2, size=SIDE, clips=scores.shape[1])

    def __len__(self) -> int:
        return len(self.annotations.items)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        _, index = key
        scores = self.scores[index]
        video = torch.zeros(len(scores), 2, 3 * SIDE * SIDE)
        video[..., : scores.shape[-1]] = scores
        return {
            "video": video.unflatten(-1, (3, SIDE, SIDE)),
            "label": self.annotations.items[index].label,
            "index": index,
            "error": "no video stream" if index in self.broken else None,
        }


def random_tiny_clip(image_size: tuple[int, int] | None = None) -> nn.Module:
    """The bundled CLIP's architecture with random weights, of one size always the same ones."""
    from m2clip.towers.tiny import build_tiny_clip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = build_tiny_clip(image_size).eval()
    clip.m2clip_source = {"name": "tiny", "pretrained": None}
    if image_size is not None:
        clip.m2clip_source["image_size"] = f"{image_size[0]}x{image_size[1]}"
    return clip
