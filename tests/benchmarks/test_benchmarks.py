"""The benchmarks measure what they say: times, memory, and only variants that compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor

from benchmarks import adapter_speed, adapter_variants, command, framework, measure, memory, mixer_speed, pictures
from m2clip import kernels
from m2clip.kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = adapter_variants.Case("small", 2, 3, (3, 3), 32, 16)


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    # A pytest started below believes itself a worker of this one otherwise, where pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT, env=environment)


def prepared(problem: framework.Problem) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    return framework.prepare(problem, dict.fromkeys(problem.compiled, "left out"))


def test_interleaved_turns() -> None:
    order: list[str] = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleave(runs, 2, CPU, calls={"a": 1, "b": 2}, before_turn=lambda: order.append("-"))
    assert "".join(order) == "-a-bb" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    slow = measure.interleave({"a": lambda: time.sleep(0.01)}, 2, CPU, calls={"a": 3})
    assert all(0.01 <= value < 0.028 for value in slow["a"])


def test_calls_fill_a_turn() -> None:
    assert measure.calls_for(lambda: time.sleep(0.01), CPU, 0.05) in (2, 3, 4, 5)
    assert measure.calls_for(lambda: time.sleep(0.01), CPU, 0.0) == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_formulation_agrees(shared: bool, dtype: str) -> None:
    ready, not_run, wrong = prepared(adapter_variants.Problem(replace(SMALL, shared=shared, dtype=dtype), CPU))
    assert {"authors eager", "m2clip reference"} <= ready.keys() and not wrong
    assert {f"m2clip {backend}" for backend in kernels.BACKENDS} <= ready.keys() | not_run.keys()


@pytest.mark.parametrize("shared", [False, True])
def test_shift_and_add_agrees(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    problem = adapter_variants.Problem(replace(SMALL, shared=shared), CPU)
    assert problem.worst_error(problem.shift_and_add(), problem.exact().results())[1] <= 1e-5


@pytest.mark.parametrize("index", range(len(kernels.BranchWeights._fields)))
@pytest.mark.parametrize("branch", ["temporal", "difference"])
def test_a_wrong_weight_is_noticed(branch: str, index: int) -> None:
    problem = adapter_variants.Problem(SMALL, CPU)
    truth = problem.exact().results()
    problem.leaves[f"{branch}.{kernels.BranchWeights._fields[index]}"].detach().view(-1)[0] += 0.5
    assert problem.worst_error(problem.on("reference"), truth)[1] > 10 * problem.tolerance["float32"]


def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = kernels.ted_adapter

    def wrong(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        y = right(x, *args, **kwargs)
        return y if x.dtype == torch.float64 else y + 0.01

    monkeypatch.setattr(kernels, "ted_adapter", wrong)
    options = ["--shapes", "tiny", "--rounds", "1", "--no-compile", "--no-memory", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["adapter_speed.py", *options, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="m2clip reference is wrong: error .* of y"):
        adapter_speed.main()
    (case,) = json.loads((tmp_path / "adapter_speed.json").read_text())["cases"]
    assert case["passes"]["forward"]["variants"].keys() == {"authors eager"}
    assert case["not_run"]["m2clip reference"].startswith("wrong")


def test_the_floor_counts_its_gemms() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for case in (SMALL, replace(SMALL, shared=True)):
        runs = adapter_variants.Problem(case, CPU).floor_runs()
        for which, backward in zip(framework.PASSES, (False, True), strict=True):
            with FlopCounterMode(display=False) as counter:
                runs[which]()
            assert counter.get_total_flops() == case.flops(backward)


def test_adapter_speed(tmp_path: Path) -> None:
    options = ["--shapes", "tiny", "--rounds", "2", "--no-compile", "--device", "cpu", "--out", tmp_path]
    done = script("benchmarks/adapter_speed.py", *options)
    assert done.returncode == 0, done.stderr
    assert "forward+backward" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "x " in line)
    results = json.loads((tmp_path / "adapter_speed.json").read_text())
    assert results["config"]["compiled"] is False
    (case,) = results["cases"]
    assert case["not_run"]["authors autotuned"] == "left out by --no-compile"
    assert case["memory_unknown"]["m2clip reference"]
    for numbers in case["passes"].values():
        for own in numbers["variants"].values():
            assert 0 < own["floor_fraction"]["median"] < 1.5
            assert own["seconds"]["p20"] <= own["seconds"]["median"] <= own["seconds"]["p80"]
        assert numbers["variants"]["authors eager"]["speedup_over"]["authors"]["median"] == 1.0
    picture = matplotlib.image.imread(tmp_path / "adapter_speed.png")
    assert 0.02 < (picture[..., :3] < 0.99).any(axis=-1).mean() < 0.6
    worst = json.loads(json.dumps(results).replace("m2clip reference", "m2clip native"))
    other = matplotlib.image.imread(pictures.draw(worst, tmp_path / "other.png"))
    assert other.shape != picture.shape or (other != picture).any()


def test_an_unknown_shape_is_told() -> None:
    done = script("benchmarks/adapter_speed.py", "--shapes", "b99", "--device", "cpu")
    assert done.returncode == 2
    assert "unknown case 'b99'; choose from b16-r384" in done.stderr


PROBE = """
import sys, torch
sys.path.insert(0, {root!r})
from benchmarks.memory import peak_bytes
kept = []
def run():
    first = torch.ones(8 << 20, dtype=torch.uint8)
    if {keep}:
        kept[:] = kept or [torch.ones(4 << 20, dtype=torch.uint8)]
    second = torch.ones(16 << 20, dtype=torch.uint8)
    del first, second
    return torch.ones(2 << 20, dtype=torch.uint8)
print('{{"peak": %d}}' % peak_bytes(run, lambda: torch.ones(64 << 20, dtype=torch.uint8), torch.device("cpu")))
"""


@pytest.mark.skipif(not memory.RESET.exists(), reason="memory of a CPU's processes is counted on Linux only")
@pytest.mark.parametrize(("keep", "megabytes"), [(False, 24), (True, 28)])
def test_peak_memory_counts_what_lives_at_once(keep: bool, megabytes: int) -> None:
    found, reason = memory.in_own_process(["-c", PROBE.format(root=str(ROOT), keep=keep)])
    assert not reason
    assert found["peak"] == pytest.approx(megabytes << 20, abs=1 << 20)


def test_a_process_that_fails_tells_why() -> None:
    assert memory.in_own_process(["-c", "raise ValueError('no such thing')"]) == ({}, "ValueError: no such thing")


def test_mixers_agree() -> None:
    for dtype in ("float32", "bfloat16"):
        ready, _, wrong = prepared(mixer_speed.Problem(replace(SMALL, dtype=dtype), CPU))
        assert "m2clip reference" in ready and not wrong
        if kernels.backend_states()["native"].available:
            assert "m2clip native" in ready


def test_a_wrong_mixer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mixer_speed.Problem(SMALL, CPU)
    truth = problem.exact().results()
    monkeypatch.setattr(problem, "exact", lambda: Namespace(results=lambda: {**truth, "d h": 1.01 * truth["d h"]}))
    ready, not_run, wrong = prepared(problem)
    assert not ready and not_run["m2clip reference"] == "wrong: error 9.9e-03 of d h"
    assert "small: m2clip reference is wrong: error 9.9e-03 of d h" in wrong


def test_a_mixer_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(mixer_speed, "CPU_CASES", [SMALL])
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    options = ["--rounds", "2", "--warm", "--no-compile", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["mixer_speed.py", *options])
    mixer_speed.main()
    assert "small, backward in us" in capsys.readouterr().out
    results = json.loads((tmp_path / "mixer_speed.json").read_text())
    assert results["config"]["warm"]
    passes = results["cases"][0]["passes"]
    rows = 2 * SMALL.tokens * SMALL.width * 4
    assert {which: numbers["bytes"] for which, numbers in passes.items()} == {"forward": 2 * rows, "backward": 3 * rows}
    for numbers in passes.values():
        assert numbers["copy"]["bandwidth_gb_s"] > 0
        assert all(own["copy_fraction"]["median"] > 0 for own in numbers["variants"].values())
    assert (tmp_path / "mixer_speed.png").stat().st_size > 10_000


@pytest.mark.parametrize(("backend", "variant"), [("native", "m2clip native"), ("reference", "m2clip reference")])
def test_what_auto_takes_is_recorded(backend: str, variant: str) -> None:
    if not kernels.backend_states()[backend].available:
        pytest.skip(kernels.backend_states()[backend].reason)
    problem = adapter_variants.Problem(SMALL, CPU)
    ready = dict.fromkeys(("m2clip native", "m2clip reference"), problem.on(backend))
    with kernels.use_backend(backend):
        assert command.of_auto(problem, ready) == variant


def test_a_killed_benchmark_has_lost_one_case_and_what_compiles_comes_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[str, bool]] = []

    def stopped(problem: Any, without: Any) -> Any:
        seen.append((problem.case.name, bool(without.keys() & {"authors compiled"})))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {}, dict(without), []

    monkeypatch.setattr(command, "prepare", stopped)
    monkeypatch.setattr(framework, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(adapter_speed, "CPU_CASES", [SMALL, adapter_speed.TINY])
    options = ["--rounds", "1", "--no-memory", "--device", "cpu", "--budget", "600", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["adapter_speed.py", *options])
    with pytest.raises(KeyboardInterrupt):
        adapter_speed.main()
    assert seen == [("small", True), ("tiny", True), ("small", False)]
    results = json.loads((tmp_path / "adapter_speed.json").read_text())
    assert [case["name"] for case in results["cases"]] == ["small", "tiny"]


def test_results_name_their_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (measure.commit() == "unknown") == (not (ROOT / ".git").exists() and not (ROOT / "COMMIT").exists())
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    assert measure.commit() == "unknown"
    (tmp_path / "COMMIT").write_text("abc1234\n")
    assert measure.commit() == "abc1234"
    monkeypatch.setenv("PATH", "")
    assert measure.commit() == "abc1234"


def test_operation_suite(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-json={tmp_path / 'ops.json'}"]
    done = script("-m", "pytest", "benchmarks/ops", "--device", "cpu", "-k", "reference", *quick)
    assert done.returncode == 0, done.stdout
    names = [each["name"] for each in json.loads((tmp_path / "ops.json").read_text())["benchmarks"]]
    for operation in dispatch.OPERATIONS:
        assert sum(f"[{operation} " in name for name in names) >= 2
