"""When a kernel counts as proven: its error against fp64 is that of the eager reference in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._pytree import tree_map

from m2clip.kernels.exactness import judge

# Results in a dtype on a backend; with torch.abs as `of` those of the absolute values of all inputs.
Run = Callable[..., list[Tensor]]


def assert_proven(run: Run, dtype: torch.dtype, backend: str, repeat: bool = False) -> None:
    """Output and gradients of `run` are as exact on a backend as on the reference; with repeat, the same each time."""
    truth, eager, ours = (run(*way) for way in ((torch.float64, "reference"), (dtype, "reference"), (dtype, backend)))
    assert_as_exact(truth, eager, ours, run(torch.float64, "reference", of=torch.abs))
    assert not repeat or all(torch.equal(a, b) for a, b in zip(ours, run(dtype, backend), strict=True))


def assert_as_exact(
    truth: Sequence[Tensor],
    eager: Sequence[Tensor],
    ours: Sequence[Tensor],
    terms: Sequence[Tensor | None] | None = None,
    outputs: int = 1,
) -> None:
    """Tensors are right by m2clip.kernels.exactness, of which the first `outputs` are outputs, the others gradients.

    `terms` are results in fp64 whose terms all have one sign.
    """
    terms = [None] * len(truth) if terms is None else terms
    assert len(truth) == len(eager) == len(ours) == len(terms)
    for index, (exact, reference, result, added) in enumerate(zip(truth, eager, ours, terms, strict=True)):
        assert result.shape == reference.shape and result.dtype == reference.dtype, index
        verdict = judge(result, reference, exact, index >= outputs, None if added is None else added.abs())
        assert verdict.passed, f"tensor {index}: {verdict}"


def assert_operator_is_sound(op: str, arguments: Sequence[Any], needs: Sequence[Sequence[bool]]) -> None:
    """torch.library.opcheck of an operator, trained and for inference, and of its backward pass.

    Args:
        op: its name.
        arguments: all but whether anything is kept; every tensor of floats is trained.
        needs: which gradients are needed, in turns.
    """
    forward, backward = (getattr(torch.ops.m2clip, name).default for name in (op, f"{op}_backward"))
    plain = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tuple(arguments))
    trained = tree_map(lambda leaf: leaf.clone().requires_grad_() if _is_float(leaf) else leaf, plain)
    for keep in (True, False):
        opcheck(forward, (*trained, keep))
    y, saved = forward(*plain, True)
    for needed in needs:
        opcheck(backward, (torch.randn_like(y), *plain, saved, needed))


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
