"""What a model says of clips, the label sets that it says it about, and twins of a model for other label sets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m2clip.towers.prompts import Prompts

_M = TypeVar("_M", bound=nn.Module)


@dataclass
class Output:
    """What a model says of B clips of T frames.

    Attributes:
        logits: (B, C) of the visual classification head, None where there is none for the current class names.
        similarity: (B, C) scaled cosine of the video with every class text, plus the CLIP's bias where it has one.
        video_features: (B, D_vl).
        frame_features: (B, T, D_vl).
    """

    logits: Tensor | None
    similarity: Tensor
    video_features: Tensor
    frame_features: Tensor


# So that torch.export, and whatever else looks for tensors in results, finds them.
torch.export.register_dataclass(Output, serialized_type_name="m2clip.Output")


class LabelSet:
    """C class names as a model reads them. It is never changed, only replaced, so that threads may share it.

    Attributes:
        names: the class names.
        prompts: their tokens, on the CPU.
        frozen: prompts and hidden states up to the first text adapter on the model's device, once they were computed.
    """

    def __init__(self, names: Sequence[str], prompts: Prompts) -> None:
        self.names, self.prompts = tuple(names), prompts
        self.frozen: tuple[Prompts, Tensor] | None = None


def same_weights(module: _M, made: dict[int, Any]) -> _M:
    """A copy of a tree of modules whose parameters and buffers are the original's, even when those are replaced."""
    twin = made.get(id(module))
    if twin is None:
        twin = made[id(module)] = copy.copy(module)
        children = module._modules.items()
        twin._modules = {name: None if child is None else same_weights(child, made) for name, child in children}
    return twin
