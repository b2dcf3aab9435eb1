"""AdamW over a model's parameter groups, with linear learning-rate scaling, warm-up and decay by step."""

from __future__ import annotations

import math
from typing import Any

import torch

from m2clip.errors import InputError

REFERENCE_BATCH = 256


def scaled_lr(lr: float, samples: int) -> float:
    """Peak learning rate for `samples` clips per step, from `lr` for 256 (linear scaling, Goyal et al. 2017)."""
    return lr * samples / REFERENCE_BATCH


class WarmupCosine:
    """Factor on the learning rate at each optimiser step: linear warm-up, then a cosine to the floor at the end.

    Step k of W warm-up steps has factor (k + 1) / W, so that the first step is not lost and the last of them is at the
    peak; after that f + (1 - f) 0.5 (1 + cos(pi (k - W) / (N - W))), with N steps in all.

    Args:
        total_steps: N, 1 or more.
        warmup_steps: W, 0 or more.
        floor: f, 0 to 1.
    """

    def __init__(self, total_steps: int, warmup_steps: int, floor: float = 0.0) -> None:
        if total_steps < 1 or warmup_steps < 0:
            raise InputError(
                f"a schedule needs 1 or more steps and no negative warm-up, not {total_steps} and {warmup_steps}"
            )
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.floor = floor

    def factor(self, step: int) -> float:
        """Factor at optimiser step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.cosine((step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))

    def cosine(self, done: float) -> float:
        """Factor after this share of the cosine."""
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set every group's learning rate for this step; returns the rate of a group with lr_scale 1."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return float(optimizer.defaults["lr"]) * factor


class CosineUnderWarmup(WarmupCosine):
    """A cosine over all N steps, of which a linear warm-up from 0 covers the first W.

    Step k < W has factor k / W, later ones f + (1 - f) 0.5 (1 + cos(pi k / N)): the rate drops a little where the
    warm-up ends. Source: the rates in MSTA's published training logs.
    """

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return self.cosine(step / self.total_steps)


class WarmupSteps(WarmupCosine):
    """Linear warm-up, then 1, 0.1 from 60 % of all N steps on and 0.01 from 80 % on, but never less than the floor.

    The first W steps have also the factor (k + 1) / W of `WarmupCosine`. Source: the relative rates 1, 0.1 and 0.01 of
    CLIP-FSAR's code, whose steps lie near these shares of a training.
    """

    def factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        # In whole numbers: 0.6 * 5 is a little less or more than 3, depending on how it is computed.
        drops = sum(10 * step >= tenths * self.total_steps for tenths in (6, 8))
        return warm * max(self.floor, 0.1**drops)


SCHEDULES = {
    "cosine_after_warmup": WarmupCosine,
    "cosine_under_warmup": CosineUnderWarmup,
    "steps": WarmupSteps,
}


def build_optimizer(
    model: Any,
    *,
    lr: float,
    samples_per_step: int,
    weight_decay: float,
    text_lr_scale: float | None = None,
    beta2: float = 0.999,
) -> torch.optim.AdamW:
    """AdamW over `model.parameter_groups()`.

    Args:
        model: a video model; each group has "name", "params", "lr_scale" and "weight_decay" (bool).
        lr: learning rate for 256 clips per step.
        samples_per_step: clips of one optimiser step, over all processes and accumulated passes.
        weight_decay: decoupled decay of the groups that have it (biases do not).
        text_lr_scale: factor on the rate of groups whose name contains "text", in place of theirs; None keeps theirs.
        beta2: decay of the running mean of squared gradients.

    Raises:
        InputError: the model has nothing to train.
    """
    peak = scaled_lr(lr, samples_per_step)
    groups = []
    for group in model.parameter_groups():
        scale = group["lr_scale"]
        if text_lr_scale is not None and "text" in group["name"]:
            scale = text_lr_scale
        if group["params"]:
            groups.append(
                {
                    "name": group["name"],
                    "params": list(group["params"]),
                    "peak_lr": peak * scale,
                    "lr": peak * scale,
                    "weight_decay": weight_decay if group["weight_decay"] else 0.0,
                }
            )
    if not groups:
        raise InputError(
            f"model.method {model.method!r} has no trained tensors: choose another method, or evaluate it as it is"
        )
    # Fused: one launch a group, and it can be told on the device to leave a step out (`found_inf`).
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
