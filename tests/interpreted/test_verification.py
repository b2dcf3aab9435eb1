"""Triton kernels are verified for real, in the interpreter: each plan of its own, and a wrong one is found."""

from __future__ import annotations

import pytest
import torch

from m2clip.kernels.triton import ted
from m2clip.kernels.verification import choices, worker
from m2clip.kernels.verification.cases import cases
from m2clip.kernels.verification.keys import Call
from m2clip.kernels.verification.plans import plans_of

CPU = torch.device("cpu")
TED = Call("ted_adapter", "both", 24, 8, torch.float16)


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    """The interpreter is slow: the first case of a call has every branch of the kernels, too."""
    monkeypatch.setattr(worker, "cases", lambda call: cases(call)[:1])


def verified(call: Call, backend: str = "triton") -> tuple[str, float]:
    return worker.verify(choices.key_of(call, backend, CPU), CPU, lambda waits: None)


@pytest.mark.parametrize("plan", ["", "/launches", "/wide", "/narrow"])
def test_each_plan_of_an_adapter(plan):
    assert plan in ("", *(f"/{name}" for name in plans_of(TED, "triton", CPU)))
    message, error = verified(TED, f"triton{plan}")
    assert message == "" and 0 < error < 3


@pytest.mark.parametrize(
    "call",
    [
        TED._replace(layout="temporal patches-only", dtype=torch.float32),
        Call("bottleneck_adapter", "relu branch", 24, 8, torch.float32),
        Call("bias_gelu", "quick_gelu", 24, 0, torch.float32),
        Call("msta_adapter", "grouped", 24, 8, torch.float32),
        Call("cosine_cross_entropy", "few", 24, 0, torch.float32),
        Call("soft_target_kl", "few", 24, 0, torch.float32),
    ],
    ids=str,
)
def test_every_operation(call):
    message, error = verified(call)
    assert message == "" and 0 < error < 3


def test_a_wrong_plan_is_found_where_another_is_right(monkeypatch):
    wide = ted.forward_wide
    monkeypatch.setattr(ted, "forward_wide", lambda *a: [part * 1.01 for part in wide(*a)])
    assert "allowed 2x" in verified(TED, "triton/wide")[0]
    assert verified(TED, "triton/launches")[0] == ""
