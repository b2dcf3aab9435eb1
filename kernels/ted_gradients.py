"""From the products of a backward pass to the gradients of the weights, in the order and layout of the parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .operands import Branches


class Products(NamedTuple):
    """What a backend has summed over all tokens, C being the columns of h."""

    down: Tensor  # (C, D): dhᵀ x
    up: Tensor  # (D, C): dyᵀ u
    class_sum: Tensor  # (D,): dy over class tokens
    patch_sum: Tensor  # (D,): dy over all other tokens
    small: list[Tensor]  # per branch that is on: of conv_weight, conv_bias and the down-projection's bias


def weight_gradients(branches: Branches, products: Products, patches_only: bool) -> list[Tensor]:
    """Gradients of all tensors of `branches`, in their order."""
    width = branches.projections()[0][0].shape[0]
    downs, ups = products.down.split(width), products.up.split(width, dim=1)
    small = products.small
    gradients: list[Tensor] = []
    if branches.temporal:
        conv_weight, conv_bias, down_bias = small[:3]
        if branches.shared:
            down_bias = down_bias + small[5]
        up_bias = products.patch_sum if patches_only else products.class_sum + products.patch_sum
        gradients += [downs[0], down_bias, conv_weight, conv_bias, ups[0], up_bias]
    if branches.shared:
        gradients += small[3:5]
    elif branches.difference:
        conv_weight, conv_bias, down_bias = small[-3:]
        gradients += [downs[-1], down_bias, conv_weight, conv_bias, ups[-1], products.patch_sum]
    tensors = [tensor for part in branches for tensor in part]
    return [in_layout_of(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]


def in_layout_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's dtype and strides, which DistributedDataParallel wants, in memory of its own."""
    own_memory = gradient.untyped_storage().nbytes() == gradient.nbytes
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride() and own_memory:
        return gradient
    return torch.empty_like(tensor).copy_(gradient)
