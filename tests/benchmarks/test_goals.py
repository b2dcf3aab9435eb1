"""The table of goals, and the table of errors: what they read off results, and what they say where there are none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import errors, goals
from benchmarks.measure import Budget
from benchmarks.workloads import bottleneck, loss, ted
from m2clip.kernels import backend_states


def numbers(seconds: float, **rest: Any) -> dict[str, Any]:
    return {"seconds": {"median": seconds}, **rest}


def adapter_results() -> dict[str, Any]:
    ours = {
        "floor_fraction": {"median": 0.8},
        "least_fraction": 0.72,
        "copy_fraction": 0.4,
        "speedup_over": {"authors": {"median": 3.2}, "torch.compile": {"median": 1.5}},
    }
    slow = {**ours, "least_fraction": 0.1}
    variants = {
        "authors eager": numbers(3.2),
        "m2clip reference": numbers(0.1, least_fraction=9.0),
        "m2clip triton": numbers(1.0, **ours),
        "m2clip cuda": numbers(0.5, **slow),
    }
    passes = {which: {"variants": copy.deepcopy(variants)} for which in ("forward", "forward+backward")}
    del passes["forward"]["variants"]["m2clip reference"]
    memory = {"authors eager": 100, "m2clip triton": 49, "m2clip cuda": 10}
    case = {"name": "b16-r384", "auto": "m2clip triton", "passes": passes, "peak_memory_bytes": memory}
    return {"device": "Some GPU", "cases": [case]}


@pytest.fixture
def found(tmp_path: Path) -> goals.Found:
    (tmp_path / "adapter_speed.json").write_text(json.dumps(adapter_results()))
    return goals.Found.read(tmp_path)


def test_what_auto_takes_counts_and_nothing_faster(found: goals.Found) -> None:
    assert goals.goals_of(found) is goals.GPU_GOALS
    rows = {row[0]: row[1:] for row in (goal.row(found) for goal in goals.GPU_GOALS)}
    start = "ted_adapter B/16, T=8, R=384, "
    assert rows[start + "forward, over the authors' code"] == ("≥ 3.00x", "3.20x", "met")
    assert rows[start + "forward, over torch.compile"] == ("≥ 1.60x", "1.50x", "missed")
    assert rows[start + "with backward, of the floor"] == ("≥ 65 %", "72 %", "met")
    assert rows[start + "memory of the authors'"] == ("≤ 50 %", "49 %", "met")
    assert rows["mixer, forward, of the copy"] == ("≥ 80 %", "not measured yet", "")


def test_msta_is_held_against_a_convolution_of_permuted_tokens(tmp_path: Path) -> None:
    ours = {"floor_fraction": {"median": 0.8}, "speedup_over": {"eager reference": {"median": 2.5}}}
    variants = {
        "eager reference": numbers(2.5),
        "m2clip reference": numbers(0.5),
        "m2clip triton": numbers(1.0, **ours),
    }
    peaks = {"eager reference": 100, "m2clip reference": 1, "m2clip triton": 40}
    passes = {which: {"variants": variants} for which in ("forward", "forward+backward")}
    content = {
        "device": "Some GPU",
        "cases": [{"name": "clip", "auto": "m2clip triton", "passes": passes, "peak_memory_bytes": peaks}],
    }
    (tmp_path / "msta_speed.json").write_text(json.dumps(content))
    found = goals.Found.read(tmp_path)
    rows = {row[0]: row[1:] for row in (goal.row(found) for goal in goals.GPU_GOALS)}
    start = "msta_adapter B/16, T=8, d=256, "
    assert rows[start + "forward, over nn.Conv3d on permuted tokens"] == ("≥ 3.00x", "2.50x", "missed")
    assert rows[start + "forward, over torch.compile"] == ("≥ 1.60x", "not measured yet", "")
    assert rows[start + "with backward, of the floor"] == ("≥ 65 %", "80 %", "met")
    assert rows[start + "memory of nn.Conv3d's"] == ("≤ 70 %", "40 %", "met")


def test_steps_of_backends_by_name_do_not_count(tmp_path: Path) -> None:
    seconds = {
        name: {"median": value} for name, value in (("m2clip", 2.0), ("m2clip CUDA graph", 1.5), ("m2clip cuda", 1))
    }
    content = {
        "device": "Some GPU",
        "seconds": seconds,
        "peak_fraction": {"m2clip CUDA graph": 0.4, "m2clip cuda": 0.6},
    }
    (tmp_path / "train_speed.json").write_text(json.dumps(content))
    rows = {goal.what: goal.value(goals.Found.read(tmp_path)) for goal in goals.GPU_GOALS}
    assert rows["training step, B/16, 8 frames, K400, of the matmul peak"] == 0.4


def test_lost_shapes_are_listed(found: goals.Found) -> None:
    assert list(goals.lost(found)) == [
        "adapter_speed b16-r384, forward: m2clip triton takes 2.00 times as long as m2clip cuda",
        "adapter_speed b16-r384, forward+backward: m2clip triton takes 10.00 times as long as m2clip reference",
    ]


def test_without_results_nothing_is_measured(tmp_path: Path) -> None:
    nothing = goals.Found.read(tmp_path)
    assert all(goal.row(nothing)[2:] == ("not measured yet", "") for goal in (*goals.GPU_GOALS, *goals.CPU_GOALS))
    assert not list(goals.lost(nothing))


@pytest.mark.skipif(not backend_states()["native"].available, reason="no compiled extension")
def test_errors_are_shares_of_the_largest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    work = ted(1, 2, (2, 3), 12, 8)
    ours, eager = errors.errors(work, "native", torch.float32)
    assert len(ours) == len(eager) == 1 + len(work.leaves)
    assert 0 < max(ours) < 1e-5 and 0 < max(eager) < 1e-5
    right = work.call

    def one_per_cent_too_large(leaves: Any, backend: str) -> torch.Tensor:
        return right(leaves, backend) * (1.01 if backend == "native" else 1)

    ours, eager = errors.errors(work._replace(call=one_per_cent_too_large), "native", torch.float32)
    assert ours == pytest.approx([0.01] * len(ours), rel=1e-2) and max(eager) < 1e-5


@pytest.mark.skipif(not backend_states()["native"].available, reason="no compiled extension")
def test_the_worst_of_all_shapes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [bottleneck((5, 12), 8), bottleneck((7, 12), 8), loss("soft_target_kl", 4, 4, 8)]
    monkeypatch.setattr(errors, "small_workloads", lambda: iter(shapes))
    rows = errors.measure(["native", "triton"], ["float32"], True, Budget(None))
    assert [(row["op"], row["backend"], row["shapes"]) for row in rows] == [
        ("bottleneck_adapter", "native", 2),
        ("soft_target_kl", "native", 1),
    ]
    worst = max(errors.errors(work, "native", torch.float32)[0][0] for work in shapes[:2])
    assert rows[0]["output"]["error"] == worst
    assert not errors.measure(["native"], ["float32"], True, Budget(1e-9))
