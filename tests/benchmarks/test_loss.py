"""The losses' benchmark: every variant computes the same, a wrong one is told, and a run writes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from benchmarks import framework, loss_speed
from m2clip.kernels import backend_states

CPU = torch.device("cpu")
SMALL = (
    loss_speed.Case("small", "cosine_cross_entropy", 6, 9),
    loss_speed.Case("small", "soft_target_kl", 6, 6),
    loss_speed.Case("small", "masked_word_loss", 6, 20),
    loss_speed.Case("small", "masked_word_loss", 6, 20, frozen=True),
)


def prepared(problem: loss_speed.Problem) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    return framework.prepare(problem, {loss_speed.COMPILED: "left out"})


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_variant_agrees(case: loss_speed.Case) -> None:
    ready, not_run, wrong = prepared(loss_speed.Problem(case, CPU))
    assert not wrong
    assert ready.keys() | not_run.keys() >= {loss_speed.EAGER, loss_speed.COMPILED}
    if case.op == "masked_word_loss":
        assert "m2clip" in ready
    else:
        assert ("m2clip native" in ready) == backend_states()["native"].available


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = loss_speed.Problem(SMALL[0], CPU)
    v = problem.leaves["v"]
    found = {
        "right": lambda: problem.on("reference"),
        "wrong": lambda: problem.variant(lambda: 1.01 * problem.reference(problem.leaves)),
        "broken": lambda: problem.variant(lambda: v @ v),
    }
    monkeypatch.setattr(problem, "builders", lambda: (found, {}))
    ready, not_run, wrong = prepared(problem)
    assert list(ready) == ["right"] and not_run["broken"].startswith("RuntimeError")
    (complaint,) = wrong
    assert complaint.startswith("small: wrong is wrong: error 1.0e-02 of ")


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["loss_speed.py", "--quick", "--no-compile", "--cases", "pairs", "--device", "cpu", "--out", str(tmp_path)],
    )
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    loss_speed.main()
    shown = capsys.readouterr().out
    assert "pairs, forward+backward" in shown and "torch.compile: not run, left out by --no-compile" in shown
    result = json.loads((tmp_path / "loss_speed.json").read_text())
    (case,) = result["cases"]
    assert case["op"] == "soft_target_kl" and result["config"]["rounds"] == 3
    numbers = case["passes"]["forward+backward"]
    assert numbers["floor"]["gemms"] == 3 and numbers["flops"] == 3 * 2 * 64 * 64 * 512
    assert all(own["seconds"]["median"] > 0 for own in numbers["variants"].values())
    assert matplotlib.image.imread(tmp_path / "loss_speed.png").shape[2] in (3, 4)
