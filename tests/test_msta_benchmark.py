"""MSTA's benchmark: its plain form is the operation in every layout, and a wrong variant is told and not timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import msta_speed, operation_speed
from m2clip.kernels import backend_states

TINY = next(case for case in msta_speed.CPU_CASES if case.name == "tiny")


@pytest.mark.parametrize("after_up", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_the_plain_form_is_the_operation(joint: bool, after_up: bool) -> None:
    case = replace(TINY, tokens=9 if joint else 5, joint=joint, after_up=after_up)
    ready, not_run, wrong = msta_speed.Problem(case, torch.device("cpu")).variants(compiled=False)
    assert list(ready)[:2] == ["eager reference", "m2clip reference"] and not wrong
    assert not any(reason.startswith("wrong") for reason in not_run.values())


def test_text_has_no_convolution() -> None:
    case = msta_speed.Case("words", 3, 4, 24, 12)
    ready, _, wrong = msta_speed.Problem(case, torch.device("cpu")).variants(compiled=False)
    assert "m2clip reference" in ready and not wrong


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = msta_speed.Problem(TINY, torch.device("cpu"))
    right = problem.call
    monkeypatch.setattr(
        problem, "call", lambda backend, *inputs: right(backend, *inputs) * (1.01 if backend == "native" else 1)
    )
    ready, not_run, wrong = problem.variants(compiled=False)
    native = backend_states()["native"].available
    assert list(ready) == ["eager reference", "m2clip reference"]
    assert ("wrong: error" in not_run["m2clip native"]) == native and len(wrong) == native


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--cases", "tiny", "--no-compile", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["msta_speed.py", *arguments])
    monkeypatch.setattr(operation_speed, "TURN_SECONDS", 0.0)
    msta_speed.main()
    assert "tiny, forward+backward" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "msta_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["floor"]["gemms"] == 3
    assert (tmp_path / "msta_speed.png").stat().st_size > 10_000
