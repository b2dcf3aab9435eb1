"""What the tuner times on the Triton backend runs, and what it keeps is taken by the next launch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import msta
from m2clip.kernels import TimeLayout, tuner, tuning
from m2clip.kernels.operands import Geometry
from m2clip.kernels.triton import mixer, ted
from m2clip.kernels.triton import msta as triton_msta
from m2clip.kernels.triton.tunables import tunables
from m2clip.kernels.tuner import Problem
from m2clip.kernels.tuning import Tuned
from tests.kernels.test_native_ted import case

CPU = torch.device("cpu")
PROBLEM = Problem(32, 16, 2, (2, 2), 1, torch.float32, classes=5)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning.forget()
    yield tmp_path
    tuning.forget()


def test_everything_that_is_timed_runs_with_all_its_candidates(monkeypatch):
    monkeypatch.setattr(tuner, "ROUNDS", 1)
    seen = set()
    for tunable in tunables(PROBLEM, CPU):
        config, choice = tuner.best_config(tunable, CPU)
        assert not choice.failed, choice
        assert config in {tunable.rule, *tunable.candidates}
        assert len(choice.seconds) == len({tunable.rule, *tunable.candidates})
        seen.add(tunable.kernel)
    assert seen == {
        *("mixer", "projection", "one_pass_narrow", "one_pass_wide", "ted_adapter_plan", "bottleneck", "bias_gelu"),
        *("msta_up", "msta_time", "loss", "loss_gradient"),
    }


def test_a_kept_plan_is_taken(monkeypatch):
    taken = []
    for plan in ("launches", "narrow", "wide"):
        name = "forward_in_launches" if plan == "launches" else f"forward_{plan}"
        run = getattr(ted, name)
        monkeypatch.setattr(ted, name, lambda *args, plan=plan, run=run: (taken.append(plan), run(*args))[1])
    run = case(2, (3, 3), "both", 1)
    y = run(torch.float32, "triton")[0]
    columns = next(tunable for tunable in tunables(PROBLEM, CPU) if tunable.kernel == "ted_adapter_plan").arguments[1:]
    width = 2 * 19  # of the case
    tuning.save("cpu", Tuned(configs={tuning.key("ted_adapter_plan", width, *columns): ["wide"]}))
    again = run(torch.float32, "triton")[0]
    assert taken == ["launches", "wide"]
    assert (y - again).abs().max() < 1e-5


def test_a_kept_tile_is_taken():
    question = (16, 4, False)
    rule = mixer.mixer_config(*question)
    other = next(config for config in mixer.mixer_candidates(*question) if config != rule)
    tuning.save("cpu", Tuned(configs={tuning.key("mixer", *question): list(other)}))
    h, empty = torch.randn(2, 5, 32), torch.zeros(16, 1, 3)
    kernel = mixer.Mixer([empty, empty[:, 0, 0]], [], False, Geometry(2, (2, 2), True))
    assert kernel._config(h, backward=False) == other
    assert kernel._config(h, backward=True) == mixer.mixer_config(16, 4, True)


def test_kept_tiles_of_msta_are_taken():
    problem, width, dtype = msta((4, 5, 32), 16, TimeLayout(2)), 16, torch.float32
    leaves = problem.placed(dtype)
    before = problem.results(leaves, "triton")
    asked = [tunable for tunable in tunables(PROBLEM, CPU) if tunable.kernel.startswith("msta")]
    tuning.save("cpu", Tuned(configs={tuning.key(each.kernel, *each.arguments): each.candidates[0] for each in asked}))
    kept = {(each.kernel, each.arguments[0]): each.candidates[0] for each in asked}
    assert triton_msta.up_config_of(32, width, leaves["x"]) == kept["msta_up", 32]
    for spread in (1, 2):
        assert triton_msta.time_config_of(spread, leaves["x"]) == kept["msta_time", spread]
    assert not any(each.candidates[0] == each.rule for each in asked)
    for ours, same in zip(problem.results(leaves, "triton"), before, strict=True):
        torch.testing.assert_close(ours, same, rtol=1e-5, atol=1e-4)
