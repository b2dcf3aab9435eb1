"""The rule by which a backend is chosen, of facts alone."""

from __future__ import annotations

import pytest

from m2clip.kernels.verification.decide import REFERENCE, candidates, decide
from m2clip.kernels.verification.store import Verdict

RIGHT = Verdict(True, 0.8, "", 1.0)
WRONG = Verdict(False, 3.1, "output: error 3.1x PyTorch's, allowed 2x", 1.0)


def plans(backend: str) -> list[str]:
    return ["wide", "launches"] if backend == "triton" else []


@pytest.mark.parametrize(
    ("able", "measured", "wanted"),
    [
        (["triton", "cuda"], "", ["triton", "triton/wide", "triton/launches", "cuda"]),
        (["cuda", "triton"], "cuda", ["cuda", "triton", "triton/wide", "triton/launches"]),
        (["triton"], "cuda", ["triton", "triton/wide", "triton/launches"]),  # measured with another installation
        (["triton", "cuda"], REFERENCE, []),
        (["native"], "", ["native"]),
        ([], "", []),
    ],
)
def test_what_was_measured_comes_first_and_then_the_static_order(able, measured, wanted):
    assert candidates(able, measured, plans) == wanted


@pytest.mark.parametrize(
    ("known", "obstacle", "backend", "missing"),
    [
        ({}, "", REFERENCE, "cuda"),  # a measured winner is verified as well: speed proves nothing about numbers
        ({"cuda": RIGHT}, "", "cuda", ""),
        ({"cuda": WRONG}, "", REFERENCE, "triton"),
        ({"cuda": WRONG, "triton": RIGHT}, "", "triton", ""),
        ({"cuda": WRONG, "triton": WRONG}, "", REFERENCE, "triton/launches"),
        ({"cuda": WRONG, "triton": WRONG, "triton/launches": RIGHT}, "", "triton/launches", ""),
        ({"cuda": WRONG, "triton": WRONG, "triton/launches": WRONG}, "", REFERENCE, ""),
        ({"triton": RIGHT}, "", REFERENCE, "cuda"),
        ({"triton": RIGHT}, "the call is traced", "triton", ""),  # what is known counts
        ({}, "the call is traced", REFERENCE, ""),
    ],
)
def test_nothing_runs_that_was_not_verified(known, obstacle, backend, missing):
    found = decide(["cuda", "triton", "triton/launches"], "cuda", known.get, obstacle)
    assert (found.backend, found.missing) == (backend, missing)
    assert found.open == (not known and bool(obstacle))


def test_the_reason_says_what_is_known():
    assert "error 0.8x PyTorch's; measured fastest" in decide(["cuda"], "cuda", lambda _: RIGHT).reason
    assert "not measured, see `m2clip tune`" in decide(["cuda"], "", lambda _: RIGHT).reason
    assert decide(["cuda"], "", lambda _: WRONG).reason == f"cuda is off here: {WRONG.message}"
    assert "the call is traced" in decide(["cuda"], "", lambda _: None, "the call is traced").reason
    assert "measured faster" in decide([], REFERENCE, lambda _: None).reason
    assert "no kernel" in decide([], "", lambda _: None).reason
