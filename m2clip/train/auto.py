"""The rule of the recipe `auto`: what a run on somebody's own videos is given. Small functions of numbers alone.

docs/own_videos.md tells the rule in words.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2clip.config import RunConfig, bundled_configs, load_config
from m2clip.config_fields import flatten
from m2clip.towers.loading import TINY
from m2clip.train.checks import classes_of_left_and_right
from m2clip.train.optim import REFERENCE_BATCH, scaled_lr

RECIPE = "auto"
# Passes over the videos: 12 over Kinetics-400's 240,000, as published, and more over fewer. The fourth root gives
# UCF101's 9,537 videos 27 of them, where the recipe for it has 30.
PASSES, PASSES_OVER = 12, 240_000
LEAST_STEPS, LEAST_STEPS_PER_CLASS = 200, 10
ROUNDS = 10  # validations of a run, each at the end of an epoch
WARM_UP = 0.1  # of all steps
# What a training step keeps of a block, in elements per token and channel: 638 MB for B/16 and 2.27 GB for L/14, of a
# clip of 8 frames in fp32 (benchmarks/results/cpu/step_memory.json).
KEPT = 11
KEPT_RECOMPUTED = 1.1
USABLE = 0.5  # share of the free memory that these may take: weights, the text tower and decoded clips need some too
# Peak rate and clips per step that are published with the method for ViT-B/16.
PUBLISHED = {"m2clip": (1e-3, 256), "st_adapter": (1e-3, 256), "aim": (3e-4, 64), "msta": (8e-4, 256)}

_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What a process has to work with.

    Attributes:
        device: "cpu", or the type of a GPU.
        memory: bytes of that device that are free.
        cores: of the processor, for this process.
        bf16: whether the device computes in bf16.
        processes: of the group.
    """

    device: str
    memory: int
    cores: int
    bf16: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Tower:
    """The size of a vision tower.

    Attributes:
        tokens: of a frame.
        width: channels of a token.
        blocks: of the tower.
    """

    tokens: int
    width: int
    blocks: int


def choose(
    config: RunConfig, given: Collection[str], videos: int, class_names: Sequence[str], machine: Machine, tower: Tower
) -> dict[str, Any]:
    """The fields that the rule fills in, by dotted name.

    Args:
        config: the recipe with what the user has given.
        given: names of the fields that the user has given, which stay as they are and decide the others.
        videos: of training.
        class_names: C names.
        machine: of this process.
        tower: of the CLIP.
    """
    own = flatten(config)
    found: dict[str, Any] = {}

    def let(name: str, value: Any) -> Any:
        if name in given:
            return own[name]
        found[name] = value
        return value

    method, frames = config.model.method, config.data.num_frames
    demo = demo_of(method) if config.model.clip == TINY else None
    if demo is not None:
        let("model.preset", demo.model.preset)
        # Descriptions are of the demo's classes.
        options = {name: value for name, value in demo.model.options.items() if name != "descriptions"}
        for name, value in options.items():
            if f"model.options.{name}" not in given:
                found[f"model.options.{name}"] = value
        let("optim.beta2", demo.optim.beta2)
    if method == "msta" and not config.model.options.get("descriptions"):
        let("model.options.alpha", 0)  # the weight of the loss that needs them
    precision = let("optim.precision", precision_of(machine))
    wanted = math.ceil(clips_per_step(videos) / machine.processes)
    memory = USABLE * machine.memory
    recomputed = clip_bytes(tower, frames, precision, recomputed=False) > memory
    blocks = let("optim.checkpointing", tower.blocks if recomputed else 0)
    fitting = int(memory / clip_bytes(tower, frames, precision, recomputed=blocks >= tower.blocks))
    batch, accumulate = passes_of_a_step(wanted, fitting)
    batch, accumulate = let("optim.batch_size", batch), let("optim.accumulate", accumulate)
    clips = batch * accumulate * machine.processes
    let("optim.lr", rate_of(method, demo, clips) * REFERENCE_BATCH / clips)
    repeat, epochs = epochs_of(steps_of(videos, len(class_names), clips), videos, clips)
    let("data.repeat", repeat)
    let("optim.warmup_epochs", WARM_UP * let("optim.epochs", epochs))
    let("data.workers", workers_of(machine, light=demo is not None))
    let("data.flip", not classes_of_left_and_right(class_names))
    return found


def precision_of(machine: Machine) -> str:
    """fp32 on a CPU; on a GPU bf16, or fp16 where it does not compute in that."""
    if machine.device == "cpu":
        return "fp32"
    return "bf16" if machine.bf16 else "fp16"


def clips_per_step(videos: int) -> int:
    """8 for up to 16 videos, 16 for up to 1,000, 32 for up to 10,000, else 64."""
    return next((clips for most, clips in ((16, 8), (1000, 16), (10_000, 32)) if videos <= most), 64)


def clip_bytes(tower: Tower, frames: int, precision: str, recomputed: bool) -> int:
    """Memory that a training step keeps for each clip, in bytes.

    Args:
        tower: the vision tower.
        frames: of a clip.
        precision: "fp32", "bf16" or "fp16".
        recomputed: whether all blocks are computed again in the backward pass.
    """
    elements = frames * tower.tokens * tower.width * tower.blocks
    return round(elements * (KEPT_RECOMPUTED if recomputed else KEPT) * (4 if precision == "fp32" else 2))


def passes_of_a_step(clips: int, fitting: int) -> tuple[int, int]:
    """Clips per forward pass and passes per step, for so many clips per step where so many fit into the memory."""
    passes = math.ceil(clips / max(1, fitting))
    return math.ceil(clips / passes), passes


def steps_of(videos: int, classes: int, clips: int) -> int:
    """Optimiser steps: 12 passes over 240,000 videos, more over fewer; never less than the classes need.

    Args:
        videos: of training.
        classes: of them.
        clips: of a step.
    """
    passes = PASSES * (PASSES_OVER / videos) ** 0.25
    return max(LEAST_STEPS, LEAST_STEPS_PER_CLASS * classes, math.ceil(passes * videos / clips))


def epochs_of(steps: int, videos: int, clips: int) -> tuple[int, int]:
    """Passes per epoch and epochs: about ten epochs of at most so many steps in all, or more epochs of one pass."""
    repeat = max(1, round(steps * clips / videos / ROUNDS), math.ceil(clips / videos))
    return repeat, max(1, steps // (videos * repeat // clips))


def steps_in(seconds: float, per_clip: float, clips: int, held_out: int) -> int:
    """Optimiser steps that fit into a time, with a validation after every tenth of them and one at the end.

    Args:
        seconds: to train in.
        per_clip: seconds of a clip in training; of a video in validation they are fewer.
        clips: of a step.
        held_out: videos of a validation.
    """
    return int((seconds - (ROUNDS + 1) * held_out * per_clip) / (clips * per_clip))


def steps_in_all(config: RunConfig, videos: int, processes: int) -> int:
    """Optimiser steps of a run.

    Args:
        config: the run.
        videos: of training.
        processes: of the group.
    """
    passes = videos * config.data.repeat // processes // config.optim.batch_size
    return config.optim.epochs * math.ceil(passes / config.optim.accumulate)


def workers_of(machine: Machine, light: bool) -> int:
    """Decoding processes: beside a GPU all cores but one, on a CPU a part of them, as training needs the others.

    Args:
        machine: of this process.
        light: whether decoding a clip takes about as long as training on it: then half of the cores, else a quarter.
    """
    if machine.device == "cpu":
        return min(8, machine.cores // (2 if light else 4))
    return max(1, min(8, machine.cores - 1))


def rate_of(method: str, demo: RunConfig | None, clips: int) -> float:
    """The peak learning rate: on the bundled CLIP the demo's, else the published one by the square root of the clips.

    Args:
        method: name of the method.
        demo: its recipe on the bundled CLIP; None for another CLIP.
        clips: of a step.
    """
    if demo is not None:
        return scaled_lr(demo.optim.lr, demo.optim.batch_size)
    rate, published_clips = PUBLISHED.get(method, PUBLISHED["m2clip"])
    return rate * math.sqrt(clips / published_clips)


def demo_of(method: str) -> RunConfig | None:
    """The recipe of a method on the bundled CLIP, if there is one."""
    name = f"{method}_demo"
    return load_config(name) if name in bundled_configs() else None


def this_machine(device: torch.device, processes: int = 1) -> Machine:
    """What this process has to work with."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = max(1, len(os.sched_getaffinity(0)) // beside)
    if device.type == "cpu":
        return Machine("cpu", _free_memory() // beside, cores, processes=processes)
    free, _ = torch.cuda.mem_get_info(device)
    return Machine(device.type, free, cores, torch.cuda.is_bf16_supported(including_emulation=False), processes)


def _free_memory() -> int:
    """Bytes of main memory that this program can still have, within the limits of its container."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(available[1]) << 10 if available else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such limit
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return max(free, 0)
