"""What the tuner times on the Triton backend runs, and what it keeps is taken by the next launch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import msta
from m2clip.kernels import TimeLayout
from m2clip.kernels.operands import Geometry
from m2clip.kernels.triton import candidates as triton_candidates
from m2clip.kernels.triton import losses, mixer, ted
from m2clip.kernels.triton import msta as triton_msta
from m2clip.kernels.triton.candidates import kernel_candidates
from m2clip.kernels.tuning import measure, store
from m2clip.kernels.tuning.candidates import Shape
from m2clip.kernels.tuning.store import Measurements
from tests.kernels.test_native_ted import case

CPU = torch.device("cpu")
SHAPE = Shape(32, 16, 2, (2, 2), 1, torch.float16, classes=5)
ONE_LAUNCH = {"one_pass_narrow", "one_pass_wide"}  # kernels for 16 bits


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    store.forget()
    yield tmp_path
    store.forget()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_everything_that_is_timed_runs_with_all_its_candidates(dtype, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(losses, "MANY", 32)
    monkeypatch.setattr(triton_candidates, "FEATURES", 40)
    seen = set()
    for kernel in kernel_candidates(SHAPE._replace(dtype=dtype), CPU):
        config, choice = measure.best_config(kernel, CPU)
        assert not choice.failed, choice
        assert config in {kernel.rule, *kernel.others}
        assert len(choice.seconds) == len({kernel.rule, *kernel.others})
        seen.add(kernel.kernel)
    assert seen == {
        *(ONE_LAUNCH if dtype == torch.float16 else ()),
        *("mixer", "projection", "ted_adapter_plan", "bottleneck", "bias_gelu"),
        *("msta_up", "msta_time", "loss", "loss_gradient"),
    }


def test_a_kept_plan_is_taken(monkeypatch):
    taken = []
    for plan in ("launches", "narrow", "wide"):
        name = "forward_in_launches" if plan == "launches" else f"forward_{plan}"
        run = getattr(ted, name)
        monkeypatch.setattr(ted, name, lambda *args, plan=plan, run=run: (taken.append(plan), run(*args))[1])
    run = case(2, (3, 3), "both", 1)
    y = run(torch.float16, "triton")[0]
    plans = next(each for each in kernel_candidates(SHAPE, CPU) if each.kernel == "ted_adapter_plan")
    width = 2 * 19  # of the case
    store.save("cpu", Measurements(configs={store.key("ted_adapter_plan", width, *plans.arguments[1:]): ["wide"]}))
    again = run(torch.float16, "triton")[0]
    assert taken == ["narrow", "wide"]
    assert (y - again).abs().max() < 1e-2


def test_a_kept_tile_is_taken():
    question = (16, 4, "temporal", False)
    rule = mixer.mixer_config(*question)
    other = next(config for config in mixer.mixer_candidates(*question) if config != rule)
    store.save("cpu", Measurements(configs={store.key("mixer", *question): list(other)}))
    h, empty = torch.randn(2, 5, 32), torch.zeros(16, 1, 3)
    kernel = mixer.Mixer([empty, empty[:, 0, 0]], [], False, Geometry(2, (2, 2), True))
    assert kernel._config(h, "temporal", backward=False) == other
    assert kernel._config(h, "temporal", backward=True) == mixer.mixer_config(16, 4, "temporal", True)


def test_kept_tiles_of_msta_are_taken():
    problem, width, dtype = msta((4, 5, 32), 16, TimeLayout(2)), 16, torch.float16
    leaves = problem.placed(dtype)
    before = problem.results(leaves, "triton")
    asked = [kernel for kernel in kernel_candidates(SHAPE, CPU) if kernel.kernel.startswith("msta")]
    store.save("cpu", Measurements(configs={store.key(each.kernel, *each.arguments): each.others[0] for each in asked}))
    kept = {(each.kernel, each.arguments[0]): each.others[0] for each in asked}
    assert triton_msta.up_config_of(32, width, leaves["x"]) == kept["msta_up", 32]
    for spread in (1, 2):
        assert triton_msta.time_config_of(spread, leaves["x"]) == kept["msta_time", spread]
    assert not any(each.others[0] == each.rule for each in asked)
    for ours, same in zip(problem.results(leaves, "triton"), before, strict=True):
        torch.testing.assert_close(ours, same, rtol=1e-3, atol=1e-2)
