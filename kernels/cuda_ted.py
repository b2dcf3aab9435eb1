"""ted_adapter on the CUDA backend: products by torch (cuBLAS), and the compiled mixer between them.

Both branches are projected at once. Only x and h are kept for the backward pass, whose mixer writes u once more. On
Hopper GPUs the whole forward pass can be one launch (docs/hopper_adapter.md); it runs where `plan` asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cuda
from .cuda import Mixer, add_residual, stream
from .operands import Branches, Geometry
from .ted_gradients import Products, weight_gradients

PLANS = ("separate", "one launch")


def forward(
    x: Tensor, branches: Branches, geometry: Geometry, residual: bool, keep: bool, plan: str = "separate"
) -> tuple[Tensor, Tensor]:
    """y (B*T, L, D) and h (B*T, L, C), empty unless kept. Without residual y is the branches alone.

    Args:
        plan: "separate" launches for products, mixer and residual, or "one launch", which `why_not_one_launch` may
            refuse.

    Raises:
        ValueError: another plan, or one launch for what does not fit it.
    """
    if plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}; choose from {', '.join(PLANS)}")
    x = x.contiguous()
    h = x.new_empty(branches.hidden_shape(x))
    if plan == "one launch":
        reason = why_not_one_launch(x, branches, geometry)
        if reason:
            raise ValueError(f"ted_adapter cannot be one launch here: {reason}")
        y = _one_launch(x, h, branches, geometry, residual)
        return y, h if keep else x.new_empty(0)
    down, bias = branches.down_weight(), branches.down_bias()
    if bias is None:
        torch.mm(_rows(x), down.t(), out=_rows(h))
    else:
        torch.addmm(bias, _rows(x), down.t(), out=_rows(h))
    u = torch.empty_like(h)
    if h.numel():
        mixer(branches, geometry).forward(h, u)
    y = torch.mm(_rows(u), branches.up_weight().t()).view_as(x)
    if y.numel():
        add_residual(y, x if residual else None, branches.up_biases(geometry.patches_only), geometry.class_token)
    return y, h if keep else x.new_empty(0)


def backward(
    dy: Tensor, x: Tensor, h: Tensor, branches: Branches, geometry: Geometry, residual: bool, need_x: bool, need_w: bool
) -> tuple[Tensor, list[Tensor]]:
    """dx, empty unless needed, and the gradients of all weights in the order of `branches`, none unless needed."""
    dy, x = dy.contiguous(), x.contiguous()
    du = torch.mm(_rows(dy), branches.up_weight()).view_as(h)
    dh, u = torch.empty_like(h), torch.empty_like(h) if need_w else None
    small = mixer(branches, geometry).backward(h, du, u, dh) if h.numel() else []
    dx = x.new_empty(0)
    if need_x and residual:
        dx = torch.addmm(_rows(dy), _rows(dh), branches.down_weight()).view_as(x)
    elif need_x:
        dx = torch.mm(_rows(dh), branches.down_weight()).view_as(x)
    if u is None:
        return dx, []
    if not small:
        return dx, [torch.zeros_like(tensor) for part in branches for tensor in part]
    total = dy.sum(dim=(0, 1), dtype=torch.float32)
    class_sum = dy[:, 0].sum(dim=0, dtype=torch.float32) if geometry.class_token else torch.zeros_like(total)
    products = Products(_rows(dh).t() @ _rows(x), _rows(dy).t() @ _rows(u), class_sum, total - class_sum, small)
    return dx, weight_gradients(branches, products, geometry.patches_only)


def mixer(branches: Branches, geometry: Geometry) -> Mixer:
    """The mixer of these weights."""
    return Mixer(branches.temporal[2:4], branches.difference_arguments(), branches.shared, geometry)


def why_not_one_launch(x: Tensor, branches: Branches, geometry: Geometry) -> str | None:
    """Why the forward pass of x (B*T, L, D) cannot be one launch, or None if it can."""
    width, bottleneck = x.shape[2], branches.projections()[0][0].shape[0]
    if not hasattr(cuda.extension, "hopper_adapter_forward"):
        return "the extension was built without sm_90a"
    if geometry.patches_only:
        return "it takes class tokens as well"
    if torch.cuda.get_device_capability(x.device) != (9, 0):
        return "it is for GPUs of compute capability 9.0"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it has no kernel for {x.dtype}"
    if width % 64 or bottleneck % 64:
        return f"D = {width} and R = {bottleneck} are not both multiples of 64"
    if geometry.num_frames > 64:
        return f"{geometry.num_frames} frames are more than 64"
    if x.shape[0] * x.shape[1] >= 2**31 or x.numel() == 0:
        return f"{x.shape[0] * x.shape[1]} tokens are none, or 2^31 and more"
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


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
