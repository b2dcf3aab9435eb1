"""ted_adapter: temporal enhancement and temporal difference between a down- and an up-projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..operands import Branches, BranchWeights, Geometry, TEDWeights
from ..verification.keys import ted_layout
from .checks import check_count, check_flag, check_float, check_grid, check_kind, check_shape, check_width
from .operator import Operator

# ---- reference ----


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


def ted_reference(
    x: Tensor,
    weights: TEDWeights,
    num_frames: int,
    grid: tuple[int, int],
    prefix: int,
    patches_only: bool,
    sequential: bool,
    residual: bool = True,
) -> Tensor:
    """y = x + TE(x) + TD(x), or with sequential y' = x + TE(x), y = y' + TD(y'), for x (B*T, P + H*W, D) (Eqs. 6-8).

    The P prefix tokens take part in TE alone, with patches_only in neither. Without residual, TE(x) + TD(x) alone.
    """
    if prefix and patches_only:
        patches = ted_reference(x[:, prefix:], weights, num_frames, grid, 0, False, sequential, residual)
        return torch.cat([x[:, :prefix] if residual else torch.zeros_like(x[:, :prefix]), patches], dim=1)
    tokens = x.reshape(x.shape[0] // num_frames, num_frames, *x.shape[1:])
    y = tokens if residual else torch.zeros_like(tokens)
    if weights.temporal is not None:
        hidden = temporal_enhancement(tokens, weights.temporal)
        y = y + F.linear(hidden, weights.temporal.up_weight, weights.temporal.up_bias)
    if weights.difference is not None and grid[0] * grid[1] > 0:
        source = y if sequential else tokens
        hidden = temporal_difference(source[:, :, prefix:], weights.difference, grid)
        bias_is_in = weights.shared and weights.temporal is not None
        bias = None if bias_is_in else weights.difference.up_bias
        enhanced = F.linear(hidden, weights.difference.up_weight, bias)
        y = y + F.pad(enhanced, (0, 0, prefix, 0))
    return y.reshape(x.shape)


# ---- operator ----


def _setting(
    weights: list[Tensor], temporal: int, num_frames: int, grid: Sequence[int], *switches: bool
) -> tuple[Branches, Geometry]:
    return Branches(weights[:temporal], weights[temporal:]), Geometry(num_frames, (grid[0], grid[1]), *switches)


def _reference(x: Tensor, *options: Any) -> Tensor:
    *setting, residual = options
    branches, geometry = _setting(*setting)
    weights = Branches.of(branches.weights(), x.dtype).weights()
    return ted_reference(x, weights, *geometry, False, residual)


def _forward(run: Any, x: Tensor, *options: Any) -> Sequence[Tensor]:
    *setting, residual, keep = options
    return run.forward(x, *_setting(*setting), residual, keep)


def _backward(run: Any, dy: Tensor, saved: list[Tensor], needs: list[bool], x: Tensor, *options: Any) -> list[Tensor]:
    *setting, residual = options
    dx, gradients = run.backward(dy, x, *saved, *_setting(*setting), residual, *needs)
    return [dx, *gradients]


def _like(run: Any, x: Tensor, weights: list[Tensor], temporal: int, *options: Any) -> Sequence[Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(Branches(weights[:temporal], weights[temporal:]).hidden_shape(x))


def _flops(x: Any, weights: Any, temporal: int, *options: Any) -> int:
    return 4 * x[0] * x[1] * x[2] * _columns(weights, temporal) + _spatial_flops(x, weights[temporal:], options)


def _backward_flops(needs: list[bool], x: Any, weights: Any, temporal: int, *options: Any) -> int:
    need_x, need_w = needs
    spatial = _spatial_flops(x, weights[temporal:], options) * (1 + 2 * need_w)  # dh; u again, the weights' gradient
    return 2 * x[0] * x[1] * x[2] * _columns(weights, temporal) * (1 + need_x + 2 * need_w) + spatial


def _columns(weights: Any, temporal: int) -> int:
    """Of h."""
    projections: Any = Branches(weights[:temporal], weights[temporal:]).projections()  # shapes in place of tensors
    return sum(part[0][0] for part in projections)


def _spatial_flops(x: Any, difference: Any, options: Any) -> int:
    class_token = options[2]
    return 18 * x[0] * (x[1] - class_token) * difference[-2 if len(difference) == 2 else 0][0] if difference else 0


def _check_arguments(
    x: Tensor, weights: list[Tensor], temporal: int, num_frames: int, grid: list[int], class_token: bool, *_: bool
) -> None:
    branches = Branches(weights[: check_count("temporal", temporal, least=0)], weights[temporal:])
    _check(x, branches.weights(), check_count("num_frames", num_frames), check_grid(grid), int(class_token))


_ted_adapter = Operator(
    "ted_adapter",
    "Tensor x, Tensor[] weights, int temporal, int num_frames, int[] grid, bool class_token, bool patches_only, "
    "bool residual",
    {"native": "native.ted", "triton": "triton.ted", "cuda": "cuda.ted"},
    reference=_reference,
    forward=_forward,
    backward=_backward,
    like=_like,
    flops=_flops,
    backward_flops=_backward_flops,
    check=_check_arguments,
)


# ---- public ----


def ted_adapter(
    x: Tensor,
    weights: TEDWeights,
    num_frames: int,
    *,
    grid: tuple[int, int] | None = None,
    class_token: bool = True,
    num_prefix_tokens: int | None = None,
    patches_only: bool = False,
    sequential: bool = False,
    backend: str = "auto",
) -> Tensor:
    """TED-Adapter: temporal enhancement plus temporal difference, with residual.

    ``TE = conv1d_frames(x W_e + b_e) V_e + a_e`` on every token;
    ``TD = conv2d_grid((x_t - x_{t-1}) W_d + b_d) V_d + a_d`` on patch tokens, the first frame's difference being 0;
    ``y = x + TE + TD``. Prefix tokens (a class token, registers) receive nothing from TD.

    Args:
        x: tokens (B*T, L, D), the T frames of a clip adjacent, any strides; L = P + H*W, the P prefix tokens first.
        weights: both branches, see :class:`TEDWeights`; a branch that is None is switched off.
        num_frames: T, frames per clip, from 1.
        grid: (H, W) of the patch tokens; by default the square of that many tokens.
        class_token: whether token 0 of each frame is a class token: the word for P of 1 and 0.
        num_prefix_tokens: P, each like a class token; by default class_token says it. Two or more are mixed by a call
            of their own, of the layout "temporal no-class-token", and the patches by one without prefix tokens.
        patches_only: TE takes patch tokens alone as well, and prefix tokens pass untouched, a class token without a
            copy of the others; with TE alone that is an ST-Adapter.
        sequential: apply TD to the output of the TE residual instead of in parallel.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (B*T, L, D), dtype of x. Where a projection of TD is infinite or NaN, class tokens become NaN on all backends
        but the reference: they take part in TD's matrix products, with zeros.

    Raises:
        ValueError: shapes that do not fit together, tokens that fill no square grid while none was given, numbers out
            of range.
        TypeError: x that is not a floating-point tensor, frames, prefix tokens or a grid that are not integers, other
            switches than True and False.

    Source: M2-CLIP (AAAI 2024), Eqs. 6-8; two weight layouts: separate projections (authors' code), shared (equations).
    With patches_only: ST-Adapter (NeurIPS 2022).
    """
    check_float("x", x)
    num_frames = check_count("num_frames", num_frames)
    check_kind("weights", weights, TEDWeights)
    switches = {"class_token": class_token, "patches_only": patches_only, "sequential": sequential}
    for name, value in {**switches, "weights.shared": weights.shared}.items():
        check_flag(name, value)
    prefix = int(class_token) if num_prefix_tokens is None else check_count("num_prefix_tokens", num_prefix_tokens, 0)
    grid = _check(x, weights, num_frames, grid, prefix)
    _check_shared(weights)
    if grid[0] * grid[1] == 0:
        weights = weights._replace(difference=None)  # no patches: nothing for the difference branch
    nothing = weights.temporal is None and weights.difference is None
    branches = weights.temporal is not None, weights.difference is not None
    kind = ted_layout(*branches, weights.shared, prefix == 1, patches_only, sequential, num_frames)
    chosen = "reference" if nothing else dispatch.choose("ted_adapter", x, backend, _width(weights), kind)
    if chosen == "reference":
        weights = Branches.of(weights, x.dtype).weights()
        return ted_reference(x, weights, num_frames, grid, prefix, patches_only, sequential)
    if prefix > 1:  # the kernels know one class token
        front, patches = x.split([prefix, grid[0] * grid[1]], dim=1)
        if weights.temporal is not None and not patches_only:
            over_time = TEDWeights(weights.temporal, None)
            front = ted_adapter(front, over_time, num_frames, grid=(1, prefix), class_token=False, backend=backend)
        patches = ted_adapter(
            patches, weights, num_frames, grid=grid, class_token=False, sequential=sequential, backend=backend
        )
        return torch.cat([front, patches], dim=1)
    dtype = dispatch.compute_dtype("ted_adapter", x)
    setting = (num_frames, list(grid), prefix == 1, patches_only and prefix == 1)
    own = None if chosen == "triton" else dtype  # its kernels round weights, and write gradients in their dtype
    for temporal, difference in Branches.in_turn(weights, own) if sequential else [Branches.of(weights, own)]:
        arguments = ([*temporal, *difference], len(temporal), *setting)
        if x.dtype == dtype:
            x = _ted_adapter(x, *arguments, True, chosen)
        else:  # autocast: the residual stream keeps its precision
            x = x + _ted_adapter(x.to(dtype), *arguments, False, chosen)
    return x


def patch_grid(num_patches: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of the patch tokens of a frame: the given grid, checked, or the square.

    Args:
        num_patches: how many tokens there are, from 0.
        grid: (H, W), or None for the square.

    Raises:
        ValueError: a grid that does not hold that many, or, without one, no square number; numbers below 0.
        TypeError: what is not integers.
    """
    num_patches = check_count("num_patches", num_patches, least=0)
    if grid is not None:
        grid = check_grid(grid)
        if grid[0] * grid[1] != num_patches:
            raise ValueError(f"a grid of {grid[0]}x{grid[1]} does not hold {num_patches} patch tokens")
        return grid
    side = 0
    while side * side < num_patches:  # not math.isqrt, which torch.compile cannot follow where shapes are dynamic
        side += 1
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patch tokens fill no square grid; pass grid=(H, W)")
    return side, side


def _width(weights: TEDWeights) -> int:
    """R, or 0 where both branches are off."""
    branch = weights.temporal or weights.difference
    return branch.down_weight.shape[0] if branch is not None else 0


def _check(
    x: Tensor, weights: TEDWeights, num_frames: int, grid: tuple[int, int] | None, prefix: int
) -> tuple[int, int]:
    """(H, W), where all sizes fit together."""
    if x.dim() != 3:
        raise ValueError(f"x must be (B*T, L, D), got shape {tuple(x.shape)}")
    if x.shape[0] % num_frames:
        raise ValueError(f"the first dimension of x ({x.shape[0]}) is not a multiple of num_frames ({num_frames})")
    if x.shape[1] < prefix:
        few = (
            "no tokens, not even a class token"
            if prefix == 1
            else f"fewer tokens than the {prefix} in front of patches"
        )
        raise ValueError(f"x has {few}: shape {tuple(x.shape)}")
    for name, kernel in (("temporal", (1, 3)), ("difference", (1, 3, 3))):
        branch = getattr(weights, name)
        if branch is not None:
            _check_branch(name, branch, x, kernel)
    return patch_grid(x.shape[1] - prefix, grid)


def _check_branch(name: str, branch: BranchWeights, x: Tensor, kernel: tuple[int, ...]) -> None:
    check_kind(name, branch, BranchWeights)
    width, dim = check_width(f"{name}.down_weight", branch.down_weight), x.shape[2]
    shapes = ((width, dim), (width,), (width, *kernel), (width,), (dim, width), (dim,))
    for field, tensor, shape in zip(branch._fields, branch, shapes, strict=True):
        check_shape(f"{name}.{field}", tensor, shape, x.device)


def _check_shared(weights: TEDWeights) -> None:
    temporal, difference = weights.temporal, weights.difference
    if not weights.shared or temporal is None or difference is None:
        return
    for field in ("down_weight", "down_bias", "up_weight", "up_bias"):
        if getattr(temporal, field) is not getattr(difference, field):
            raise ValueError(f"shared=True, but temporal.{field} and difference.{field} are not the same tensor")
