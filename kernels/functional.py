"""The public operations: shapes are checked here, so that a mistake is told in one line and not from deep inside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import dispatch, loss_ops, masked_words, ops, reference
from .masked_words import IGNORE
from .operands import Branches, Geometry
from .weights import BranchWeights, TEDWeights


def ted_adapter(
    x: Tensor,
    weights: TEDWeights,
    num_frames: int,
    *,
    grid: tuple[int, int] | None = None,
    class_token: bool = True,
    patches_only: bool = False,
    sequential: bool = False,
    backend: str = "auto",
) -> Tensor:
    """TED-Adapter: temporal enhancement plus temporal difference, with residual.

    ``TE = conv1d_frames(x W_e + b_e) V_e + a_e`` on every token;
    ``TD = conv2d_grid((x_t - x_{t-1}) W_d + b_d) V_d + a_d`` on patch tokens, the first frame's difference being 0;
    ``y = x + TE + TD``. Class-token rows receive nothing from TD.

    Args:
        x: tokens (B*T, L, D), the T frames of a clip adjacent, any strides; L = H*W (+ 1 with a class token, first).
        weights: both branches, see :class:`TEDWeights`; a branch that is None is switched off.
        num_frames: T, frames a clip, from 1.
        grid: (H, W) of the patch tokens; by default the square of that many tokens.
        class_token: whether token 0 of each frame is a class token.
        patches_only: TE takes patch tokens alone as well, and class tokens pass untouched, without a copy of the
            others; with TE alone that is an ST-Adapter.
        sequential: apply TD to the output of the TE residual instead of in parallel.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (B*T, L, D), dtype of x.

    Raises:
        ValueError: shapes that do not fit together, tokens that fill no square grid while none was given.
        TypeError: x that is not a floating-point tensor.

    Source: M2-CLIP (AAAI 2024), Eqs. 6-8; two weight layouts: separate projections (authors' code), shared (equations).
    patches_only: ST-Adapter (NeurIPS 2022).
    """
    _check_float("x", x)
    if x.dim() != 3:
        raise ValueError(f"x must be (B*T, L, D), got shape {tuple(x.shape)}")
    if num_frames < 1 or x.shape[0] % num_frames:
        raise ValueError(f"the first dimension of x ({x.shape[0]}) is not a multiple of num_frames ({num_frames})")
    grid = patch_grid(x.shape[1] - int(class_token), grid)
    for name, kernel in (("temporal", (1, 3)), ("difference", (1, 3, 3))):
        branch = getattr(weights, name)
        if branch is not None:
            _check_branch(name, branch, x, kernel)
    _check_shared(weights)
    if grid[0] * grid[1] == 0:
        weights = weights._replace(difference=None)  # no patches: nothing for the difference branch
    nothing = weights.temporal is None and weights.difference is None
    chosen = dispatch.choose("ted_adapter", x, backend, _width(weights))
    if chosen == "reference" or nothing:
        weights = _cast(weights, x.dtype)
        return reference.ted_adapter(x, weights, num_frames, grid, class_token, patches_only, sequential)
    geometry = Geometry(num_frames, grid, class_token, patches_only and class_token)
    dtype = dispatch.compute_dtype("ted_adapter", x)
    for branches in Branches.in_turn(weights, dtype) if sequential else [Branches.of(weights, dtype)]:
        if x.dtype == dtype:
            x = ops.ted_adapter(x, branches, geometry, True, chosen)
        else:  # autocast: the residual stream keeps its precision
            x = x + ops.ted_adapter(x.to(dtype), branches, geometry, False, chosen)
    return x


def bottleneck_adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    activation: str = "gelu",
    scale: float = 1.0,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Bottleneck adapter ``y = x + scale * (act(x W + b) V + a)``.

    Args:
        x: tokens (..., D).
        down_weight, down_bias: (R, D), (R,).
        up_weight, up_bias: (D, R), (D,).
        activation: "gelu" (exact), "quick_gelu", "relu" or "none".
        scale: factor of the branch.
        residual: whether x itself is added.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        (..., D), dtype of x.

    Raises:
        ValueError: shapes that do not fit together, an unknown activation.
        TypeError: x that is not a floating-point tensor.

    Source: M2-CLIP (AAAI 2024), Eq. 9; Houlsby et al. 2019.
    """
    _check_float("x", x)
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(reference.ACTIVATIONS)}")
    width, dim = down_weight.shape[0], x.shape[-1]
    expected = (("down_weight", down_weight, (width, dim)), ("down_bias", down_bias, (width,)))
    for name, tensor, shape in (*expected, ("up_weight", up_weight, (dim, width)), ("up_bias", up_bias, (dim,))):
        _check_shape(name, tensor, shape)
        _check_device(name, tensor, x)
    weights = [down_weight, down_bias, up_weight, up_bias]
    chosen = dispatch.choose("bottleneck_adapter", x, backend, width)
    if chosen == "reference":
        down_weight, down_bias, up_weight, up_bias = (tensor.to(x.dtype) for tensor in weights)
        return reference.bottleneck_adapter(x, down_weight, down_bias, up_weight, up_bias, activation, scale, residual)
    dtype, rows = dispatch.compute_dtype("bottleneck_adapter", x), x.reshape(-1, dim)
    weights = [tensor.to(dtype) for tensor in weights]
    if x.dtype == dtype:
        return ops.bottleneck_adapter(rows, weights, activation, scale, residual, chosen).reshape(x.shape)
    branch = ops.bottleneck_adapter(rows.to(dtype), weights, activation, scale, False, chosen).reshape(x.shape)
    return x + branch if residual else branch


def cosine_cross_entropy(
    v: Tensor, w: Tensor, targets: Tensor, logit_scale: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Cross-modal classification: mean cross-entropy of ``logit_scale * cos(v_i, w_c)`` over all C classes.

    Args:
        v: video features (B, D), of any length (they are normalised here).
        w: text features of all classes (C, D), likewise.
        targets: class indices (B,), int64.
        logit_scale: 0-d tensor, the multiplier itself and not its logarithm; may require a gradient.
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        0-d float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes or devices that do not fit together; on the CPU, a target outside [0, C). Elsewhere such a
            target gives a NaN loss with Triton and stops the process with PyTorch's own kernels.
        TypeError: targets that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 11.
    """
    _check_pair(v, w, logit_scale)
    _check_labels("targets", targets, v)
    chosen = dispatch.choose("cosine_cross_entropy", v, backend)
    v, w, logit_scale = _for_loss(v, w, logit_scale, chosen)
    with _full_precision(v):
        if chosen != "reference":
            return loss_ops.cosine_cross_entropy(v, w, targets, logit_scale, chosen)
        if v.shape[0] == 0:
            return (v.sum() + w.sum() + logit_scale) * 0
        if _readable(targets):
            masked_words.check_range(targets, w.shape[0])
        return reference.cosine_cross_entropy(v, w, targets, logit_scale)


def soft_target_kl(
    v: Tensor,
    w: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    target_scale: float = 10.0,
    backend: str = "auto",
) -> Tensor:
    """Video-text contrastive loss: KL divergence to soft targets, averaged over both directions.

    ``target_i = softmax_j(target_scale * [labels_i = labels_j])``; the loss is the mean over rows of
    ``KL(target_i || softmax(logit_scale * cos))``, once for video to text and once for text to video.

    Args:
        v: video features (B, D). w: text features of the same samples (B, D). labels: (B,) int64.
        logit_scale: 0-d tensor, the multiplier itself.
        target_scale: sharpness of the target distribution (10 in the authors' code).
        backend: "auto" or the name of one, see :func:`explain`.

    Returns:
        0-d float32 (float64 for float64 input); 0 for an empty batch.

    Raises:
        ValueError: shapes or devices that do not fit together. TypeError: labels that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 10; targets as in ActionCLIP and the authors' code.
    """
    _check_pair(v, w, logit_scale)
    _check_labels("labels", labels, v)
    if w.shape[0] != v.shape[0]:
        raise ValueError(f"v and w must describe the same samples, got {v.shape[0]} and {w.shape[0]}")
    chosen = dispatch.choose("soft_target_kl", v, backend)
    v, w, logit_scale = _for_loss(v, w, logit_scale, chosen)
    with _full_precision(v):
        if chosen != "reference":
            return loss_ops.soft_target_kl(v, w, labels, logit_scale, target_scale, chosen)
        if v.shape[0] == 0:
            return (v.sum() + w.sum() + logit_scale) * 0
        return reference.soft_target_kl(v, w, labels, logit_scale, target_scale)


def masked_word_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, divisor: Tensor | float | None = None
) -> Tensor:
    """Cross-entropy of the masked words only; positions with target -100 are dropped before any logit is computed.

    Args:
        hidden: (..., D) features before the vocabulary decoder.
        weight, bias: decoder (V, D), (V,).
        targets: (...) int64 word ids, -100 where no word is masked.
        divisor: what the summed loss is divided by, not 0; by default the number of masked words. Training on
            several processes passes the global count over the number of processes.

    Returns:
        0-d float32 (float64 for float64 input); exactly 0, with zero gradients, where no word is masked.

    Raises:
        ValueError: shapes or devices that do not fit together; on the CPU, a target that is no word.
        TypeError: targets that are not integers.

    Source: M2-CLIP (AAAI 2024), Eq. 12 and the head after it.
    """
    _check_float("hidden", hidden)
    dim, dtype = hidden.shape[-1], _loss_dtype(hidden)
    _check_shape("weight", weight, (weight.shape[0], dim))
    _check_shape("bias", bias, (weight.shape[0],))
    for name, parameter in (("weight", weight), ("bias", bias)):
        _check_device(name, parameter, hidden)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets must be {tuple(hidden.shape[:-1])} like hidden, got {tuple(targets.shape)}")
    rows, targets = hidden.reshape(-1, dim).to(dtype), targets.reshape(-1)
    _check_labels("targets", targets, rows)
    weight, bias = weight.to(dtype), bias.to(dtype)
    with _full_precision(hidden):
        if _transformed():
            total, words = reference.masked_word_loss(rows, weight, bias, targets), (targets != IGNORE).sum()
        else:
            total, words = masked_words.masked_word_loss(rows, weight, bias, targets)
    return total / (words.clamp_min(1) if divisor is None else divisor)


def patch_grid(num_patches: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of num_patches patch tokens: the given grid, checked, or the square; ValueError if neither fits."""
    if grid is not None:
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


def _cast(weights: TEDWeights, dtype: torch.dtype) -> TEDWeights:
    def cast(branch: BranchWeights | None) -> BranchWeights | None:
        return None if branch is None else BranchWeights(*(tensor.to(dtype) for tensor in branch))

    return TEDWeights(cast(weights.temporal), cast(weights.difference), weights.shared)


def _check_float(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _check_branch(name: str, branch: BranchWeights, x: Tensor, kernel: tuple[int, ...]) -> None:
    width, dim = branch.down_weight.shape[0], x.shape[2]
    shapes = ((width, dim), (width,), (width, *kernel), (width,), (dim, width), (dim,))
    for field, tensor, shape in zip(branch._fields, branch, shapes, strict=True):
        _check_shape(f"{name}.{field}", tensor, shape)
        _check_device(f"{name}.{field}", tensor, x)


def _check_shared(weights: TEDWeights) -> None:
    temporal, difference = weights.temporal, weights.difference
    if not weights.shared or temporal is None or difference is None:
        return
    for field in ("down_weight", "down_bias", "up_weight", "up_bias"):
        if getattr(temporal, field) is not getattr(difference, field):
            raise ValueError(f"shared=True, but temporal.{field} and difference.{field} are not the same tensor")


def _loss_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_pair(v: Tensor, w: Tensor, logit_scale: Tensor) -> None:
    _check_float("v", v)
    _check_float("w", w)
    if v.dim() != 2 or w.dim() != 2 or v.shape[1] != w.shape[1]:
        raise ValueError(f"v must be (B, D) and w (C, D), got {tuple(v.shape)} and {tuple(w.shape)}")
    _check_device("w", w, v)
    if logit_scale.dim() != 0:
        raise ValueError(f"logit_scale must be a 0-d tensor, got shape {tuple(logit_scale.shape)}")
    if logit_scale.device.type != "cpu":  # one on the CPU is a plain number to PyTorch
        _check_device("logit_scale", logit_scale, v)


def _for_loss(v: Tensor, w: Tensor, logit_scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features in the dtype the loss is computed in: logits at scale 100 overflow no fp16 then.

    Triton kernels cast what they have loaded, and read the scale where the features are.
    """
    dtype = _loss_dtype(v)
    if backend != "triton":
        return v.to(dtype), w.to(dtype), logit_scale.to(dtype)
    logit_scale = logit_scale.to(v.device, dtype, non_blocking=True)
    return (v, w, logit_scale) if v.dtype == w.dtype else (v.to(dtype), w.to(dtype), logit_scale)


def _check_labels(name: str, labels: Tensor, rows: Tensor) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{name} must have shape ({rows.shape[0]},), got {tuple(labels.shape)}")
    _check_device(name, labels, rows)


def _check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} and the other tensors are on {other.device}: move one of them")


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: logits at scale 100 would be off by tenths in half precision."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device or breaking a trace."""
    return tensor.device.type == "cpu" and not ops.watched(tensor) and not _transformed()


def _transformed() -> bool:
    """Whether a torch.func transform is under way."""
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None
