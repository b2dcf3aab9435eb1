"""The bottleneck's benchmark: a wrong variant is told and not timed, and a run writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bottleneck_speed, framework
from m2clip.kernels import backend_states


def test_a_wrong_variant_is_not_timed() -> None:
    problem = bottleneck_speed.Problem(bottleneck_speed.CPU_CASES[-1], torch.device("cpu"))
    right = problem.work.call
    spoiled = lambda leaves, backend: right(leaves, backend) * (1.01 if backend == "native" else 1)  # noqa: E731
    problem.work = problem.work._replace(call=spoiled)
    ready, not_run, wrong = framework.prepare(problem, {"torch.compile": "left out"})
    native = backend_states()["native"].available
    assert list(ready) == ["eager reference"]
    assert ("wrong: error" in not_run["m2clip native"]) == native and len(wrong) == native


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--cases", "tiny", "--no-compile", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bottleneck_speed.py", *arguments])
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    bottleneck_speed.main()
    assert "tiny, forward+backward" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "bottleneck_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["floor"]["gemms"] == 2
    assert (tmp_path / "bottleneck_speed.png").stat().st_size > 10_000
