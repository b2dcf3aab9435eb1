"""Every operation in plain PyTorch: the definition of correct that all faster backends are measured against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import BranchWeights, MSTAWeights, TEDWeights, TimeLayout


def temporal_conv(h: Tensor, branch: BranchWeights) -> Tensor:
    """Depthwise convolution over the frames of (B, T, L, R), kernel 3; outside the clip h counts as 0 (Eq. 6)."""
    before, here, after = branch.conv_weight.squeeze(1).unbind(-1)
    padded = F.pad(h, (0, 0, 0, 0, 1, 1))
    return padded[:, :-2] * before + h * here + padded[:, 2:] * after + branch.conv_bias


def frame_difference(h: Tensor) -> Tensor:
    """h_t - h_{t-1} over the frames of (B, T, N, R); the first frame's difference is 0 (Eq. 7)."""
    return torch.cat([torch.zeros_like(h[:, :1]), h[:, 1:] - h[:, :-1]], dim=1)


def spatial_conv(h: Tensor, branch: BranchWeights, grid: tuple[int, int]) -> Tensor:
    """Depthwise 3x3 convolution over the patch grid of (B, T, H*W, R), zero padding 1 (Eq. 7)."""
    clips, frames, _, width = h.shape
    image = h.reshape(clips * frames, *grid, width).permute(0, 3, 1, 2)
    # Views that change nothing: on the way back they give the weight's gradient the weight's own strides, where the
    # convolution of a channels-last image returns others and DistributedDataParallel would copy it.
    weight = branch.conv_weight.squeeze(1).unsqueeze(1)
    mixed = F.conv2d(image, weight, branch.conv_bias, padding=1, groups=width)
    return mixed.permute(0, 2, 3, 1).reshape(h.shape)


def temporal_enhancement(tokens: Tensor, branch: BranchWeights) -> Tensor:
    """Hidden TE features u_e of (B, T, L, D) tokens, class token included (Eq. 6 before its up-projection)."""
    return temporal_conv(F.linear(tokens, branch.down_weight, branch.down_bias), branch)


def temporal_difference(patches: Tensor, branch: BranchWeights, grid: tuple[int, int]) -> Tensor:
    """Hidden TD features u_d of (B, T, H*W, D) patch tokens (Eq. 7 before its up-projection).

    The projection is linear, so the difference is taken after it, where tokens are narrower.
    """
    projected = frame_difference(F.linear(patches, branch.down_weight)) + branch.down_bias
    return spatial_conv(projected, branch, grid)


def ted_adapter(
    x: Tensor,
    weights: TEDWeights,
    num_frames: int,
    grid: tuple[int, int],
    class_token: bool,
    patches_only: bool,
    sequential: bool,
) -> Tensor:
    """y = x + TE(x) + TD(x), or with sequential y' = x + TE(x), y = y' + TD(y'), for x (B*T, L, D) (Eqs. 6-8)."""
    first = int(class_token)
    if first and patches_only:
        patches = ted_adapter(x[:, first:], weights, num_frames, grid, False, False, sequential)
        return torch.cat([x[:, :first], patches], dim=1)
    tokens = x.reshape(x.shape[0] // num_frames, num_frames, *x.shape[1:])
    y = tokens
    if weights.temporal is not None:
        hidden = temporal_enhancement(tokens, weights.temporal)
        y = y + F.linear(hidden, weights.temporal.up_weight, weights.temporal.up_bias)
    if weights.difference is not None and grid[0] * grid[1] > 0:
        source = y if sequential else tokens
        hidden = temporal_difference(source[:, :, first:], weights.difference, grid)
        bias_is_in = weights.shared and weights.temporal is not None
        bias = None if bias_is_in else weights.difference.up_bias
        enhanced = F.linear(hidden, weights.difference.up_weight, bias)
        y = y + F.pad(enhanced, (0, 0, first, 0))
    return y.reshape(x.shape)


ACTIVATIONS = {
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "none": lambda x: x,
}


def bottleneck_adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    activation: str,
    scale: float,
    residual: bool,
) -> Tensor:
    """y = x + scale * (act(x W + b) V + a) for x (..., D); without residual the leading x is left out (Eq. 9)."""
    hidden = ACTIVATIONS[activation](F.linear(x, down_weight, down_bias))
    branch = F.linear(hidden, up_weight, up_bias) * scale
    return x + branch if residual else branch


def bias_gelu(h: Tensor, bias: Tensor, activation: str) -> Tensor:
    """act(h + bias) for h (..., C) and bias (C,)."""
    return ACTIVATIONS[activation](h + bias)


def conv_over_frames(h: Tensor, weight: Tensor, bias: Tensor, time: TimeLayout) -> Tensor:
    """Convolution of kernel 3 over the frames of tokens (S, L, C), to (S, L, D); outside the clip h counts as 0.

    weight: (D, C / groups, 3). A token without a time gets zeros.
    """
    first = int(time.joint)
    if time.joint:
        series = h[:, first:].unflatten(1, (-1, time.num_frames)).transpose(2, 3)  # (B, N, C, T)
    else:
        series = h.unflatten(0, (-1, time.num_frames)).permute(0, 2, 3, 1)  # (B, L, C, T)
    groups = h.shape[-1] // weight.shape[1]
    mixed = F.conv1d(series.flatten(0, 1), weight, bias, padding=1, groups=groups).unflatten(0, series.shape[:2])
    if time.joint:
        return F.pad(mixed.transpose(2, 3).flatten(1, 2), (0, 0, first, 0))
    return mixed.permute(0, 3, 1, 2).flatten(0, 1)


def msta_adapter(x: Tensor, base: Tensor, weights: MSTAWeights, time: TimeLayout | None, scale: float) -> Tensor:
    """base + scale * A(x) for tokens (S, L, D): two projections with ReLU, then one up, beside it one over frames."""
    hidden = F.relu(F.linear(x, weights.down_weight, weights.down_bias))
    hidden = F.relu(F.linear(hidden, weights.shared_weight, weights.shared_bias))
    branch = F.linear(hidden, weights.up_weight, weights.up_bias)
    if time is not None and weights.conv_weight is not None and weights.conv_bias is not None:
        source = branch if weights.after_up else hidden
        branch = branch + conv_over_frames(source, weights.conv_weight, weights.conv_bias, time)
    return base + branch * scale


_IGNORE_NOTHING = torch.iinfo(torch.int64).min  # every target must be a class, also -100


def cosine_logits(v: Tensor, w: Tensor, logit_scale: Tensor) -> Tensor:
    """(B, C) scaled cosine similarities of v (B, D) and w (C, D)."""
    return logit_scale * F.normalize(v, dim=-1) @ F.normalize(w, dim=-1).T


def cosine_cross_entropy(v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean cross-entropy of the scaled cosine logits against class indices (Eq. 11)."""
    return F.cross_entropy(cosine_logits(v, w, logit_scale), targets, ignore_index=_IGNORE_NOTHING)


def soft_target_kl(v: Tensor, w: Tensor, labels: Tensor, logit_scale: Tensor, target_scale: float) -> Tensor:
    """Mean over both directions of KL(target || softmax(logits)), target rows softmax(target_scale * [same label])."""
    logits = cosine_logits(v, w, logit_scale)
    same = (labels[:, None] == labels[None, :]).to(logits.dtype)
    target = F.softmax(target_scale * same, dim=-1)
    video_to_text = F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")
    text_to_video = F.kl_div(F.log_softmax(logits.T, dim=-1), target, reduction="batchmean")
    return (video_to_text + text_to_video) / 2


def masked_word_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy over positions whose target is not -100, for hidden (N, D) and targets (N,) (Eq. 12)."""
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, ignore_index=-100, reduction="sum")
