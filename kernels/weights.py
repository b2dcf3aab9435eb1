"""The weights of a TED-Adapter, as the kernels take them: plain tensors in a named tuple."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BranchWeights(NamedTuple):
    """One branch: down-projection, depthwise convolution, up-projection. D token width, R bottleneck width."""

    down_weight: Tensor  # (R, D)
    down_bias: Tensor  # (R,)
    conv_weight: Tensor  # (R, 1, 3) over frames, or (R, 1, 3, 3) over the patch grid
    conv_bias: Tensor  # (R,)
    up_weight: Tensor  # (D, R)
    up_bias: Tensor  # (D,)


class TEDWeights(NamedTuple):
    """Both branches of a TED-Adapter; a branch that is None is switched off.

    shared: the branches carry the same down- and up-projection (the paper's Eqs. 6-7); the up-projection's bias then
    enters every token once.
    """

    temporal: BranchWeights | None  # TE, conv over frames
    difference: BranchWeights | None  # TD, conv over the patch grid
    shared: bool = False
