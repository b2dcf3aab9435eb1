"""OTAM's benchmark: all variants compute the same, a wrong one is told and not timed, and a run writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import framework, memory, otam_speed

CPU = torch.device("cpu")
TINY = otam_speed.CASES[-1]
WITHOUT_COMPILER = {otam_speed.OURS_COMPILED: "left out"}


def test_every_variant_agrees() -> None:
    ready, _, wrong = framework.prepare(otam_speed.Problem(otam_speed.Case("small", 2, 3, 2, 5), CPU), WITHOUT_COMPILER)
    assert list(ready) == [otam_speed.EAGER, otam_speed.OURS, otam_speed.PAIRS] and not wrong


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = otam_speed.batched
    monkeypatch.setattr(otam_speed, "batched", lambda query, support: right(query, support) * 1.01)
    monkeypatch.setattr(otam_speed, "MOST_CELLS", 35)
    ready, not_run, wrong = framework.prepare(otam_speed.Problem(TINY, CPU), WITHOUT_COMPILER)
    assert list(ready) == [otam_speed.EAGER] and not_run[otam_speed.PAIRS] == "36 cells one by one take minutes"
    (complaint,) = wrong
    assert complaint.startswith("tiny: m2clip is wrong: error 1.0e-02 of ")


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--cases", "tiny", "--no-compile", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["otam_speed.py", *arguments])
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(framework, "SMALL_BYTES", 0)
    otam_speed.main()
    assert "tiny, forward+backward" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "otam_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["floor"]["gemms"] == 1
    assert all(own["seconds"]["median"] > 0 for own in case["passes"]["forward"]["variants"].values())
    peaks = case["peak_memory_bytes"]
    assert peaks.keys() == {otam_speed.EAGER, otam_speed.OURS, otam_speed.PAIRS} and min(peaks.values()) > 0
    assert (tmp_path / "otam_speed.png").stat().st_size > 10_000


@pytest.mark.skipif(not memory.RESET.exists(), reason="memory of a CPU's processes is counted on Linux only")
def test_the_memory_of_one_variant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--cases", "tiny", "--device", "cpu", "--memory-of", otam_speed.OURS]
    monkeypatch.setattr("sys.argv", ["otam_speed.py", *own])
    otam_speed.main()
    assert json.loads(capsys.readouterr().out).keys() == {"peak_bytes"}
