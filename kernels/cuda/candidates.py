"""What can be measured on the CUDA backend: the plans of ted_adapter, where a GPU has more than one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..triton.device import architecture
from ..tuning.candidates import KernelCandidates, Shape, adapter_inputs
from . import ted


def kernel_candidates(shape: Shape, device: torch.device) -> Iterator[KernelCandidates]:
    """The plans of the forward pass, with separate projections."""
    x, branches, geometry = adapter_inputs(shape, device)
    rule, *others = (ted.Plan(name) for name in ted.plans(branches, geometry, shape.dtype))
    if others:
        asked = ted.plan_question(branches, shape.dtype, architecture(device))
        run = lambda plan: ted.forward(x, branches, geometry, True, False, plan.name)  # noqa: E731
        yield KernelCandidates(ted.PLAN_KERNEL, asked, rule, others, run)
