"""Parameter groups, learning-rate scaling, warm-up and cosine."""

from __future__ import annotations

import math

import pytest
import torch

import m2clip
from m2clip.errors import InputError
from m2clip.train.optim import SCHEDULES, CosineUnderWarmup, WarmupCosine, WarmupSteps, build_optimizer, scaled_lr
from tests.train.training_run import CLASS_NAMES, build_clip


def test_schedule_values() -> None:
    schedule = WarmupCosine(total_steps=12, warmup_steps=4)
    factors = [schedule.factor(step) for step in range(12)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5, abs=1e-15)
    assert factors[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)), abs=1e-15)
    assert schedule.factor(12) == pytest.approx(0.0, abs=1e-15)
    assert WarmupCosine(10, 0).factor(0) == 1.0
    assert WarmupCosine(2, 2).factor(1) == 1.0
    with pytest.raises(InputError):
        WarmupCosine(0, 0)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 13, 100])
def test_the_rates_of_mstas_logs(steps_per_epoch: int) -> None:
    schedule = CosineUnderWarmup(50 * steps_per_epoch, 5 * steps_per_epoch, floor=0.01)
    rates = [1e-3 * schedule.factor(epoch * steps_per_epoch) for epoch in (0, 1, 5, 49, 50)]
    assert [round(rate, 9) for rate in rates] == [0.0, 0.0002, 0.000975773, 0.000010977, 0.00001]


def test_steps_at_three_and_four_fifths() -> None:
    factors = [WarmupSteps(total_steps=10, warmup_steps=2).factor(step) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)
    # Where the shares are no whole steps, the next step is the first of the lower rate.
    assert [WarmupSteps(7, 0).factor(step) for step in (4, 5, 6)] == pytest.approx([1, 0.1, 0.01], rel=1e-12)
    assert [WarmupSteps(5, 0).factor(step) for step in (2, 3, 4)] == pytest.approx([1, 0.1, 0.01], rel=1e-12)
    assert WarmupSteps(10, 0, floor=0.05).factor(9) == 0.05


def test_schedules_end_at_the_floor() -> None:
    for schedule in SCHEDULES.values():
        assert schedule(20, 4, 0.25).factor(20) == pytest.approx(0.25, abs=1e-15)
        assert schedule(20, 0, 0.25).factor(0) == 1.0
    assert WarmupCosine(20, 4, 0.25).factor(12) == pytest.approx(0.625, abs=1e-15)
    assert CosineUnderWarmup(20, 4, 0.25).factor(10) == pytest.approx(0.625, abs=1e-15)


def test_beta2_and_mstas_decay_of_everything() -> None:
    model = m2clip.create_model("msta", build_clip(), CLASS_NAMES, 2, width=8, alpha=0.0)
    (group,) = build_optimizer(model, lr=1.0, samples_per_step=256, weight_decay=0.001, beta2=0.98).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-8, 0.001)
    assert len(group["params"]) == len(model.trained_state_dict())


def test_groups_rates_and_decay() -> None:
    model = m2clip.create_model("m2clip", build_clip(), CLASS_NAMES, 2, width=8, text_width=8)
    optimizer = build_optimizer(model, lr=1e-3, samples_per_step=72, weight_decay=0.01, text_lr_scale=0.25)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    peak = scaled_lr(1e-3, 72)
    assert peak == pytest.approx(1e-3 * 72 / 256, rel=1e-12)
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            text = name.startswith(("text.", "cmlm.adapter."))
            assert group["lr"] == pytest.approx(peak * (0.25 if text else 1.0), rel=1e-12), name
            assert group["weight_decay"] == (0.0 if name.endswith("bias") else 0.01), name
    assert sorted(seen) == sorted(model.trained_state_dict())
    rate = WarmupCosine(10, 2).apply(optimizer, 0)
    assert rate == pytest.approx(peak / 2, rel=1e-12)
    assert {round(group["lr"] / peak, 9) for group in optimizer.param_groups} == {0.5, 0.125}


def test_weight_decay_spares_biases_in_a_step() -> None:
    model = m2clip.create_model("m2clip", build_clip(), CLASS_NAMES, 2, width=8, text_width=8)
    optimizer = build_optimizer(model, lr=1.0, samples_per_step=256, weight_decay=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(1.0)
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in model.trained_state_dict().items():
        kept = 1.0 if name.endswith("bias") else 1 - 0.1 * (0.5 if name.startswith(("text.", "cmlm.adapter")) else 1.0)
        assert torch.allclose(tensor, torch.full_like(tensor, kept), rtol=0, atol=1e-6), name


def test_nothing_to_train() -> None:
    model = m2clip.create_model("clip", build_clip(), CLASS_NAMES, 2)
    with pytest.raises(InputError, match="'clip'"):
        build_optimizer(model, lr=1.0, samples_per_step=256, weight_decay=0.0)
