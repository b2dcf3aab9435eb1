"""MA-FSAR's adapters: which of AIM's bottlenecks a transformer block has, and the projection of text into it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from m2clip.adapters.unimodal import BottleneckAdapter
from m2clip.kernels.ops.checks import check_count, check_flag, check_number


@dataclass(frozen=True)
class BlockLayout:
    """What a block has beside its frozen weights, and the readings of it that the paper leaves open.

    Attributes:
        multimodal: whether there is an adapter behind the attention within frames.
        text: whether a token of a support video's class takes part in that attention.
        temporal: whether a clip's class tokens attend over time; the result is a token in that attention, too.
        joint: whether there is an adapter beside the MLP.
        temporal_adapters: 1, behind the attention over time, or 2, one in front of it as well.
        temporal_skip: whether the one behind has a skip of its own.
        temporal_residual: whether the class tokens themselves are added to its result.
        write_back: whether the result also takes the place of the frames' class tokens.
        joint_scale: s.
    """

    multimodal: bool = True
    text: bool = True
    temporal: bool = True
    joint: bool = True
    temporal_adapters: int = 1
    temporal_skip: bool = False
    temporal_residual: bool = True
    write_back: bool = False
    joint_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "bool":
                check_flag(field.name, getattr(self, field.name))
        check_number("joint_scale", self.joint_scale)
        if check_count("temporal_adapters", self.temporal_adapters) > 2:
            raise ValueError(f"temporal_adapters must be 1 or 2, got {self.temporal_adapters}")


class MultimodalAdapters(nn.Module):
    """The trained modules of one block, each None where the layout has none.

    Args:
        dim: token width D. width: bottleneck width.
        layout: which of them there are.
        text_fc: the projection (D_vl -> D) of text features, used where the layout has text; blocks may share one.
        backend: kernel backend of the adapters.

    Source: MA-FSAR (arXiv 2308.01532), Fig. 3.
    """

    def __init__(
        self, dim: int, width: int, layout: BlockLayout, text_fc: nn.Linear | None, backend: str = "auto"
    ) -> None:
        super().__init__()

        def adapter(present: bool, residual: bool = True, scale: float = 1.0) -> BottleneckAdapter | None:
            return BottleneckAdapter(dim, width, residual=residual, scale=scale, backend=backend) if present else None

        self.layout = layout
        self.temporal_in = adapter(layout.temporal and layout.temporal_adapters == 2)
        self.temporal = adapter(layout.temporal, residual=layout.temporal_skip)
        self.local = adapter(layout.multimodal)
        self.joint = adapter(layout.joint, residual=False, scale=layout.joint_scale)
        self.text_fc = text_fc if layout.multimodal and layout.text else None

    def text_tokens(self, text: Tensor, dtype: torch.dtype) -> Tensor | None:
        """One token (S, D) for each text feature (S, D_vl), in the tower's dtype; None in a layout without text."""
        return None if self.text_fc is None else self.text_fc(text.to(self.text_fc.weight.dtype)).to(dtype)
