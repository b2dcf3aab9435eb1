"""What is taken of PyTorch without a promise is still there and still means the same."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from m2clip.kernels import torch_private
from m2clip.kernels.tuning import store


def test_transforms_are_seen() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch_private.transformed())
        return x.sum()

    look(torch.ones(2))
    torch.func.vmap(look)(torch.ones(3, 2))
    torch.func.grad(look)(torch.ones(2))
    with forward_ad.dual_level():
        look(torch.ones(2))
    look(torch.ones(2))
    assert seen == [False, True, True, True, False]


def test_batches_of_gradients_are_seen() -> None:
    seen: list[bool] = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            seen.append(torch_private.batched(slope))
            return slope

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Look.apply(x), x, torch.ones(2))
    torch.autograd.grad(Look.apply(x), x, torch.eye(2), is_grads_batched=True)
    assert seen == [False, True]


def test_dispatch_modes_are_seen() -> None:
    assert torch_private.dispatch_mode() is None
    with FlopCounterMode(display=False):
        assert torch_private.dispatch_mode() is not None


def test_answers_are_marked_as_the_compiler_marks_them() -> None:
    marked = torch.compiler.assume_constant_result(lambda: None)
    for question in (torch_private.constant_to_compilers(lambda: None), store.too_old):
        assert vars(marked) and vars(marked).items() <= vars(question).items()


@pytest.mark.skipif(not dist.is_available(), reason="a PyTorch without processes")
def test_the_store_of_the_group_is_found() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch_private.default_store().set("here", "found")
        assert torch_private.default_store().get("here") == b"found"
    finally:
        dist.destroy_process_group()
