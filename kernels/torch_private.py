"""All that is taken of PyTorch without a promise that it stays; tests tell when a release changes one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

Question = TypeVar("Question", bound=Callable[..., Any])


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way, which a kernel's numbers leave."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def batched(slope: Tensor) -> bool:
    """Whether a gradient is a batch of several (`is_grads_batched=True`)."""
    return torch._C._functorch.is_legacy_batchedtensor(slope)


def dispatch_mode() -> object | None:
    """The innermost mode that sees every operator, such as FlopCounterMode; None without one."""
    return _get_current_dispatch_mode()


def constant_to_compilers(question: Question) -> Question:
    """Let a compiler that traces a call take the answer as a constant.

    That is what torch.compiler.assume_constant_result marks, without importing the compiler, which takes a second.
    """
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question


def default_store() -> Any:
    """The key-value store that the processes of the default group met at; it outlives single processes."""
    return torch.distributed.distributed_c10d._get_default_store()
