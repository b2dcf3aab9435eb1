"""MSTA's benchmark: its plain form is the operation in every layout, and a wrong variant is told and not timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import framework, msta_speed
from m2clip.kernels import backend_states

TINY = next(case for case in msta_speed.CPU_CASES if case.name == "tiny")


def prepared(case: msta_speed.Case) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    return framework.prepare(msta_speed.Problem(case, torch.device("cpu")), {"torch.compile": "left out"})


@pytest.mark.parametrize("after_up", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_the_plain_form_is_the_operation(joint: bool, after_up: bool) -> None:
    case = replace(TINY, tokens=9 if joint else 5, joint=joint, after_up=after_up)
    ready, not_run, wrong = prepared(case)
    assert list(ready)[:2] == ["eager reference", "m2clip reference"] and not wrong
    assert not any(reason.startswith("wrong") for reason in not_run.values())


def test_text_has_no_convolution() -> None:
    case = msta_speed.Case("words", 3, 4, 24, 12)
    ready, _, wrong = prepared(case)
    assert "m2clip reference" in ready and not wrong


def test_a_wrong_variant_is_not_timed() -> None:
    problem = msta_speed.Problem(TINY, torch.device("cpu"))
    right = problem.work.call
    spoiled = lambda leaves, backend: right(leaves, backend) * (1.01 if backend == "native" else 1)  # noqa: E731
    problem.work = problem.work._replace(call=spoiled)
    ready, not_run, wrong = framework.prepare(problem, {"torch.compile": "left out"})
    native = backend_states()["native"].available
    assert list(ready) == ["eager reference", "m2clip reference"]
    assert ("wrong: error" in not_run["m2clip native"]) == native and len(wrong) == native


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--cases", "tiny", "--no-compile", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["msta_speed.py", *arguments])
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    msta_speed.main()
    assert "tiny, forward+backward" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "msta_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["floor"]["gemms"] == 3
    assert (tmp_path / "msta_speed.png").stat().st_size > 10_000
