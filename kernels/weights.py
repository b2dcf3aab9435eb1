"""The weights of the adapters that have many, as the kernels take them: plain tensors in named tuples."""

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


class MSTAWeights(NamedTuple):
    """MSTA's adapter: D token width, d bottleneck width.

    after_up: whether the temporal convolution follows the up-projection (depthwise) or stands beside it (grouped).
    """

    down_weight: Tensor  # (d, D)
    down_bias: Tensor  # (d,)
    shared_weight: Tensor  # (d, d), the same tensor in the towers of both modalities
    shared_bias: Tensor  # (d,)
    up_weight: Tensor  # (D, d)
    up_bias: Tensor  # (D,)
    conv_weight: Tensor | None = None  # (D, d / groups, 3) over frames; after the up-projection (D, 1, 3)
    conv_bias: Tensor | None = None  # (D,)
    after_up: bool = False


class TimeLayout(NamedTuple):
    """Where the frames of a clip are among tokens.

    Each frame a sequence of its own, (B*T, L, D) with the frames of a clip adjacent; or, joint, all in one sequence
    (B, 1 + N*T, D), a class token without a time first, then patches with time running fastest.
    """

    num_frames: int
    joint: bool = False
