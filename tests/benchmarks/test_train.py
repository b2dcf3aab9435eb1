"""The benchmarks of training and inference: every variant computes the same, and a run writes what it says."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from benchmarks import inference_speed, measure, pictures, train_speed, train_variants
from benchmarks.train_variants import AUTHORS, COMPILED, GRAPH, OURS, REFERENCE, VARIANTS, Problem

CPU = torch.device("cpu")
OPTIONS = ["--clip", "tiny", "--classes", "hmdb51", "--frames", "2", "--rounds", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def exact() -> Problem:
    return Problem("tiny", 2, 2, "hmdb51", CPU, "float32")


def without_gpu_and_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_variants, "cuda_capture", lambda run: run)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_variant_trains_and_answers_alike(exact: Problem, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu_and_code_generator(monkeypatch)
    problem = exact if dtype == "float32" else Problem("tiny", 2, 2, "hmdb51", CPU, dtype)
    losses, answers = {}, {}
    for name, variant in VARIANTS.items():
        if variant.backend in ("triton", "cuda"):
            continue
        step, forward = problem.step(name), problem.forward(name)
        first, second = (step().item() for _ in range(2))
        assert first == second and first > 0  # the same weights in every step
        losses[name], answers[name] = first, [forward() for _ in range(2)]
        assert torch.equal(*answers[name]) and answers[name][0].shape == (2, 51)
    expected, tolerance = answers[AUTHORS][0], 1e-5 if dtype == "float32" else 2e-2
    assert set(losses) >= {AUTHORS, REFERENCE, OURS, GRAPH, COMPILED}
    for name, loss in losses.items():
        assert loss == pytest.approx(losses[AUTHORS], rel=tolerance), name
        assert (answers[name][0] - expected).norm() <= tolerance * expected.norm(), name


def test_the_trained_tensors_reach_the_loss(exact: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exact.step(REFERENCE)().item()
    name = "visual.blocks.0.pre_mlp.difference.conv.weight"
    monkeypatch.setitem(exact.state, name, 3 * exact.state[name])
    assert exact.step(REFERENCE)().item() != pytest.approx(before, rel=1e-5)


def test_flops_are_those_of_the_products(exact: Problem) -> None:
    counts = {}
    for name in (REFERENCE, OURS):
        step = exact.step(name)
        step()
        counts[name] = train_speed.count_flops(step)
    # The reference's depthwise convolutions are counted too; they are few where grouped ones are counted as such.
    assert counts[OURS] == pytest.approx(counts[REFERENCE], rel=0.04)
    linear = torch.nn.Linear(6, 5, bias=False)
    frozen = torch.nn.Linear(5, 4, bias=False).requires_grad_(False)
    x = torch.randn(3, 6)
    assert train_speed.count_flops(lambda: frozen(linear(x)).sum().backward()) == 2 * 3 * (2 * 6 * 5 + 2 * 5 * 4)


def run_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["train_speed.py", *OPTIONS, "--device", "cpu", "--out", str(tmp_path), *options])
    memory = {"peak_gb": 2.0, "before_steps_gb": 1.5, "steps_gb": 0.5}
    monkeypatch.setattr(train_speed.Run, "_cpu_memory", lambda self, name: dict(memory))
    train_speed.main()
    return json.loads((tmp_path / "train_speed.json").read_text())


def test_a_training_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = run_training(monkeypatch, tmp_path)
    names = list(train_variants.CPU_VARIANTS)
    assert list(results["seconds"]) == names and results["setting"]["batch"] == 2
    for name in names:
        seconds = results["seconds"][name]["median"]
        assert results["clips_per_second"][name] == pytest.approx(2 / seconds)
        peak = results["matmul_peak"]["flops_per_second"]
        assert results["peak_fraction"][name] == pytest.approx(results["step_flops"] / seconds / peak)
        assert results["first_step_seconds"][name] > 0
    assert results["memory_ratio"][OURS] == {"peak_gb": 1.0, "steps_gb": 1.0}
    shown = capsys.readouterr().out
    assert all(f"\n {name} " in shown for name in names)
    assert matplotlib.image.imread(tmp_path / "train_speed.png").shape[2] in (3, 4)


def test_the_recorded_training_step_is_still_drawn(tmp_path: Path) -> None:
    recorded = json.loads((measure.RESULTS / "cpu" / "train_speed.json").read_text())
    assert recorded["seconds"].keys() == set(train_variants.CPU_VARIANTS)
    assert matplotlib.image.imread(pictures.draw(recorded, tmp_path / "x.png")).size > 0


def test_a_wrong_training_step_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = Problem.step
    wrong = {REFERENCE: 1.001}

    def spoiled(self: Problem, name: str) -> Any:
        step = right(self, name)
        return lambda: step() * wrong.get(name, 1)

    monkeypatch.setattr(Problem, "step", spoiled)
    with pytest.raises(SystemExit, match="do not compute the same"):
        run_training(monkeypatch, tmp_path)
    assert not list(tmp_path.iterdir())


def test_compiled_steps_come_last_and_only_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    without_gpu_and_code_generator(monkeypatch)
    reports = []
    report = train_speed.report
    monkeypatch.setattr(train_speed, "report", lambda run, not_run: reports.append(1) or report(run, not_run))
    wanted = ["--variants", COMPILED, GRAPH, OURS]
    results = run_training(monkeypatch, tmp_path, *wanted)
    assert list(results["seconds"]) == [OURS, COMPILED] and "needs a GPU" in results["not_run"][GRAPH]
    assert len(reports) == 2  # once before the compiler, which may not come back in time
    with pytest.raises(SystemExit, match="m2clip compiled: no time left"):
        run_training(monkeypatch, tmp_path, *wanted, "--budget", "1e-9")
    with pytest.raises(SystemExit, match="m2clip compiled: left out by --no-compile"):
        run_training(monkeypatch, tmp_path, "--variants", COMPILED, "--no-compile")


def test_a_gpu_gets_all_variants_and_a_failing_one_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    found, not_run = train_variants.runnable(torch.device("cuda"))
    assert found + list(not_run) and set(found) | set(not_run) == set(VARIANTS)
    assert {AUTHORS, REFERENCE, OURS, GRAPH, COMPILED} <= set(found)
    names, _ = train_speed.chosen(Namespace(device="cuda", variants=None, no_compile=False))
    compiled = [VARIANTS[name].compiled for name in names]
    assert compiled == sorted(compiled) and any(compiled)

    class Broken:
        device = torch.device("cuda")

        def add(self, name: str) -> None:
            raise RuntimeError("no kernel image\nand more")

    noted: dict[str, str] = {}
    train_speed.attempt(Broken(), OURS, noted)
    assert noted == {OURS: "RuntimeError: no kernel image"}


def test_memory_of_a_process(tmp_path: Path) -> None:
    used = train_speed.memory(
        Namespace(clip="tiny", frames=2, batch=2, classes="hmdb51", device="cpu", dtype="float32", memory_of=OURS)
    )
    assert 0 < used["before_steps_gb"] <= used["peak_gb"]
    assert used["steps_gb"] == pytest.approx(used["peak_gb"] - used["before_steps_gb"])


def test_an_inference_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(inference_speed, "TURN_SECONDS", 0.0)
    arguments = [*OPTIONS, "--batches", "1", "3", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["inference_speed.py", *arguments])
    inference_speed.main()
    results = json.loads((tmp_path / "inference_speed.json").read_text())
    assert [case["batch"] for case in results["cases"]] == [1, 3]
    for case in results["cases"]:
        assert list(case["variants"]) == list(train_variants.CPU_VARIANTS)
        for own in case["variants"].values():
            assert own["throughput"] == pytest.approx(case["batch"] / own["seconds"]["median"])
    assert f"\n {OURS} " in capsys.readouterr().out
    assert matplotlib.image.imread(tmp_path / "inference_speed.png").shape[2] in (3, 4)


def test_wrong_similarities_are_told() -> None:
    problem = Problem("tiny", 2, 1, "hmdb51", CPU, "float32")
    right = problem.forward
    problem.forward = lambda name: lambda: right(name)() * (1.01 if name == OURS else 1)  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match="m2clip does not compute the same"):
        inference_speed.prepare(problem, [AUTHORS, REFERENCE, OURS], measure.Budget(None), {}, 1e-4)
