"""ted_adapter on the CUDA backend: products by torch (cuBLAS), and the compiled mixer between them.

Both branches are projected at once. Only x and h are kept for the backward pass, whose mixer writes u once more. The
forward pass has two plans, which compute the same: launches for products, mixer and residual, or on Hopper GPUs one
launch for all of them (docs/hopper_adapter.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operands import Branches, Geometry, as_rows, weight_gradients
from ..triton.device import architecture, config_or_rule
from . import extension as cuda
from .extension import Mixer, add_residual, stream

HOPPER = 90
PLANS = ("launches", "one_launch")
AT_ANY_ADDRESS = ("launches",)  # of the plans, those that take x wherever it begins
PLAN_KERNEL = "cuda_ted_adapter_plan"  # under which the fastest plan is kept


class Plan(NamedTuple):
    """A plan of the forward pass as a configuration, which can be measured like a tile."""

    name: str


def plan_question(branches: Branches, dtype: torch.dtype, architecture: int) -> tuple[int, torch.dtype, int]:
    """What the best plan depends on: columns of h, dtype and GPU."""
    return sum(part[0].shape[0] for part in branches.projections()), dtype, architecture


def plans(branches: Branches, geometry: Geometry, dtype: torch.dtype) -> list[str]:
    """The plans that can run the forward pass on the weights' GPU, the static rule's first.

    One launch has not been measured on a GPU yet, so it is only ever run where it was found to be faster.
    """
    return [plan for plan in PLANS if plan == "launches" or why_not_one_launch(branches, geometry, dtype) is None]


def forward(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool, plan: str | None = None
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C), empty unless kept. Without residual y is the branches alone.

    The plan is one of `plans`, by default what was measured on this GPU, or else the first.

    Raises:
        ValueError: another plan, or one launch for what does not fit it.
    """
    x = x.contiguous()
    if plan is None:
        plan = _best_plan(x, branches, geometry)
    elif plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}; choose from {', '.join(PLANS)}")
    elif plan == "one_launch" and x.numel():
        reason = why_not_one_launch(branches, geometry, x.dtype) or _misfit(x, branches)
        if reason:
            raise ValueError(f"ted_adapter cannot be one launch here: {reason}")
    h = x.new_empty(branches.hidden_shape(x))
    run = _one_launch if plan == "one_launch" and x.numel() else _launches
    y = run(x, h, branches, geometry, residual)
    return y, h if keep else x.new_empty(0)


def _best_plan(x: Tensor, branches: Branches, geometry: Geometry) -> str:
    rule, *others = plans(branches, geometry, x.dtype)
    if not others:
        return rule
    asked = plan_question(branches, x.dtype, architecture(x.device))
    best = config_or_rule(PLAN_KERNEL, Plan(rule), x.device, *asked).name
    return best if best in others and _misfit(x, branches) is None else rule


def _launches(x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> Tensor:
    down, bias = branches.down_weight(), branches.down_bias()
    if bias is None:
        torch.mm(as_rows(x), down.t(), out=as_rows(h))
    else:
        torch.addmm(bias, as_rows(x), down.t(), out=as_rows(h))
    u = torch.empty_like(h)
    if h.numel():
        Mixer.of(branches, geometry).forward(h, u)
    y = torch.mm(as_rows(u), branches.up_weight().t()).view_as(x)
    if y.numel():
        add_residual(y, x if residual else None, branches.up_biases(geometry.patches_only), geometry.class_token)
    return y


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    du = torch.mm(as_rows(dy), branches.up_weight()).view_as(h)
    dh, u = torch.empty_like(h), torch.empty_like(h) if need_w else None
    small = Mixer.of(branches, geometry).backward(h, du, dh, u) if h.numel() else []
    dx = x.new_empty(0)
    if need_x and residual:
        dx = torch.addmm(as_rows(dy), as_rows(dh), branches.down_weight()).view_as(x)
    elif need_x:
        dx = torch.mm(as_rows(dh), branches.down_weight()).view_as(x)
    if u is None:
        return dx, []
    if not small:
        return dx, [torch.zeros_like(tensor) for part in branches for tensor in part]
    total = dy.sum(dim=(0, 1), dtype=torch.float32)
    class_sum = dy[:, 0].sum(dim=0, dtype=torch.float32) if geometry.class_token else torch.zeros_like(total)
    sums = as_rows(dh).t() @ as_rows(x), as_rows(dy).t() @ as_rows(u), class_sum, total - class_sum
    return dx, weight_gradients(branches, *sums, small, geometry.patches_only)


def why_not_one_launch(branches: Branches, geometry: Geometry, dtype: torch.dtype) -> str | None:
    """Why the forward pass cannot be one launch on the weights' GPU, or None if it can."""
    down_weight = branches.projections()[0][0]
    bottleneck, width = down_weight.shape
    if not hasattr(cuda.extension, "hopper_adapter_forward"):
        return "the extension was built without sm_90a"
    found = architecture(down_weight.device)
    if found != HOPPER:
        return f"it is for GPUs of compute capability 9.0, not {found // 10}.{found % 10}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it has no kernel for {dtype}"
    if geometry.patches_only:
        return "it takes class tokens as well"
    if width % 64 or bottleneck % 64:
        name, size = ("D", width) if width % 64 else ("R", bottleneck)
        return f"{name} = {size} is not a multiple of 64"
    if geometry.num_frames > 64:
        return f"{geometry.num_frames} frames are more than 64"
    if 0 in geometry.grid:
        return f"a grid of {geometry.grid[0]}x{geometry.grid[1]} has no patches"
    return None


def _misfit(x: Tensor, branches: Branches) -> str | None:
    """Why contiguous x and these weights cannot be read by one launch, whatever their sizes; None if they can."""
    if x.shape[0] * x.shape[1] >= 2**31:
        return f"{x.shape[0] * x.shape[1]} tokens are 2^31 or more"
    read = {"x": x}
    if len(branches.projections()) == 1:  # those of two are joined in memory of their own
        read |= {"down_weight": branches.down_weight(), "up_weight": branches.up_weight()}
    for name, tensor in read.items():
        if tensor.is_contiguous() and tensor.data_ptr() % 16:
            return f"{name} starts {tensor.data_ptr() % 16} bytes after a multiple of 16"
    return None


def _one_launch(x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool) -> Tensor:
    y, u = torch.empty_like(x), torch.empty_like(h)
    clips = x.shape[0] // geometry.num_frames
    counters = torch.empty(2 * clips, dtype=torch.int32, device=x.device)
    bias = branches.down_bias()
    tensors = {"x": x, "y": y, "h": h, "u": u, "counters": counters}
    tensors |= {"down_weight": branches.down_weight().contiguous(), "up_weight": branches.up_weight().contiguous()}
    tensors |= dict(zip(("class_bias", "patch_bias"), branches.up_biases(False), strict=True))
    if bias is not None:
        tensors["down_bias"] = bias.float()
    if branches.temporal:
        tensors |= {"temporal_taps": _tap_major(branches.temporal[2]), "temporal_bias": branches.temporal[3].float()}
    if branches.difference:
        weight, conv_bias, down_bias = branches.difference_arguments()
        tensors |= {"difference_taps": _tap_major(weight), "difference_bias": conv_bias.float()}
        tensors["difference_down_bias"] = down_bias.float()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    args = cuda.extension.HopperAdapterArgs()
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    args.clips, args.frames, args.width = clips, geometry.num_frames, x.shape[2]
    args.grid_height, args.grid_width = geometry.grid
    args.bottleneck = branches.projections()[0][0].shape[0]
    args.class_token, args.shared, args.residual = geometry.class_token, branches.shared, residual
    args.half = x.dtype == torch.float16
    cuda.extension.hopper_adapter_forward(args, stream())
    return y


def _tap_major(weight: Tensor) -> Tensor:
    return weight.float().flatten(1).t().contiguous()
