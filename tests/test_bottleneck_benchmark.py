"""The bottleneck's benchmark: a wrong variant is told and not timed, and a run writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bottleneck_speed, operation_speed
from m2clip.kernels import backend_states


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = bottleneck_speed.Problem(bottleneck_speed.CPU_CASES[-1], torch.device("cpu"))
    right = problem.call
    monkeypatch.setattr(
        problem, "call", lambda backend, *inputs: right(backend, *inputs) * (1.01 if backend == "native" else 1)
    )
    ready, not_run, wrong = problem.variants(compiled=False)
    native = backend_states()["native"].available
    assert list(ready) == ["eager reference"]
    assert ("wrong: error" in not_run["m2clip native"]) == native and len(wrong) == native


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--cases", "tiny", "--no-compile", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bottleneck_speed.py", *arguments])
    monkeypatch.setattr(operation_speed, "TURN_SECONDS", 0.0)
    bottleneck_speed.main()
    assert "tiny, forward+backward" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "bottleneck_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["floor"]["gemms"] == 2
    assert (tmp_path / "bottleneck_speed.png").stat().st_size > 10_000
