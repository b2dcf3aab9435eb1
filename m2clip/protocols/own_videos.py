"""Training on somebody's own videos, of which nothing is known: lists, a plan by the rule of `auto`, and the run."""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2clip import distributed
from m2clip.config import RunConfig, load_config
from m2clip.data.train_lists import FOLDER, RECORD, Progress, TrainLists, prepare_lists
from m2clip.errors import InputError, Notice
from m2clip.files.kept_work import read_record, write_result
from m2clip.towers.loading import TINY
from m2clip.towers.sources import open_vision
from m2clip.towers.weight_sources import is_kept
from m2clip.train import auto, trainer
from m2clip.train.checks import check_model, classes_of_left_and_right, some
from m2clip.train.loggers import check_loggers
from m2clip.train.setup import base_clip, check_folder, check_output, clips_per_pass, training_list
from m2clip.train.starting import check_method, fields_to_agree
from m2clip.train.state import Progress as StepsDone
from m2clip.train.state import list_checkpoints
from m2clip.train.stopping import Stopped

REAL = "ViT-B-16-quickgelu", "openai"  # taken by itself where its weights are on the machine
PLAN = "plan.json"
# How long the speed is measured: after the first step, until so many seconds or steps have gone by.
_TIMED_SECONDS, _TIMED_STEPS = 5.0, 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        overrides: fields of the configuration that the rule has filled in, as `load_config` takes them.
        steps: optimiser steps.
        clips: of a step.
        per_clip: seconds of a clip as measured before the run; None in several processes.
        minutes: that training and validations take at this speed; None where it is not known.
        budget: minutes that they may take; None without a limit.
    """

    overrides: list[str]
    steps: int
    clips: int
    per_clip: float | None
    minutes: float | None
    budget: float | None


def train_on_videos(
    videos: str | Path,
    overrides: Sequence[str] = (),
    *,
    minutes: float | None = None,
    init: str | Path | None = None,
    device: torch.device,
    resume: bool = True,
    say: Say | None = print,
    progress: Progress | None = None,
) -> tuple[RunConfig, TrainLists, Plan]:
    """Train on a folder or list of videos; the same call again resumes the run.

    All processes of a group take part.

    Args:
        videos: a folder with a sub-folder per class, one of train/class/ and val/class/, a list or a pack.
        overrides: fields of the configuration, which the rule then leaves alone.
        minutes: the longest that training may take; None takes what the rule thinks right.
        init: a run, checkpoint or saved adapters to start from; the fields that have to agree with it are taken over.
        device: where to train.
        resume: as for `m2clip.train.trainer.run`.
        say: receives the lines of the plan; None keeps quiet.
        progress: called with the numbers of files looked at and of all files.

    Returns:
        The configuration that the run has, its lists and its plan.

    Raises:
        InputError: videos that cannot be trained on, settings that do not fit, or too little time for a step.
    """
    tell: Say = say if say is not None and distributed.is_main() else lambda line: None
    if init is not None:
        overrides = [*overrides, f"model.init={init}"]
    given = {override.lstrip("-").partition("=")[0] for override in overrides}
    if "data.train" in given:
        raise InputError(f"{videos} and --data.train both say which videos: give one of them")
    if minutes is not None and "optim.epochs" in given:
        raise InputError("--minutes and --optim.epochs both say how long to train: give one of them")
    if minutes is not None and distributed.world_size() > 1:
        raise InputError("--minutes measures the speed of one process: give --optim.epochs to several")
    source = Path(videos).resolve()
    fixed = (
        [] if "output" in given else [f"output=runs/{(source.name if source.is_dir() else source.stem) or 'videos'}"]
    )
    config = load_config(auto.RECIPE, [f"data.train={videos}", *fixed, *overrides])
    check_output(config)
    check_loggers(config)  # before minutes are spent on looking at the videos
    check_model(config, device)
    folder = Path(config.output) / FOLDER
    begun = bool(list_checkpoints(Path(config.output, "checkpoints")))
    kept = read_record(folder / PLAN) if begun else {}
    first = [] if kept else _first(config, given, init)
    lists = _lists(config, folder, progress, begun)
    for line in lists.told:
        tell(line)
    fixed += [f"data.train={folder / lists.train}", f"data.classes={folder / lists.classes}"]
    fixed += [f"data.val={'null' if lists.val is None else folder / lists.val}", f"data.format={lists.format}"]
    fixed += ["data.root=null", "data.train_split=null", "data.val_split=null", "data.allow_mismatched_folders=true"]
    if kept and minutes not in (None, kept["budget"]):
        raise InputError(f"{config.output} holds a run with a plan of its own: --minutes is for a new --output")
    if not kept:
        tell("measuring the speed of training")
    plan = Plan(**kept) if kept else _plan(first, [*overrides, *fixed], given, device, minutes, lists)
    plan = distributed.gather_objects(plan)[0]
    config = load_config(auto.RECIPE, [*plan.overrides, *overrides, *fixed])
    if distributed.is_main() and not kept:
        write_result(asdict(plan), folder / PLAN)
    for line in describe(config, lists, plan, device):
        tell(line)
    trainer.run(config, resume=resume, device=device, quiet=say is None)
    distributed.barrier()  # the main process writes the weights last
    return config, lists, plan


def _lists(config: RunConfig, folder: Path, progress: Progress | None, begun: bool) -> TrainLists:
    """The lists, which the main process makes or finds.

    Raises:
        InputError: a folder with files of others or with a run by a recipe, or what `prepare_lists` raises.
    """
    found: list[TrainLists] = []

    def make() -> None:
        if begun and not read_record(folder / RECORD):
            raise InputError(f"{config.output} holds a run by a recipe: give another --output")
        check_folder(config)
        found.append(prepare_lists(config.data, folder, config.seed, progress, begun))

    with distributed.locked_by_main(config.output, "training"):
        distributed.by_main(make)
    return distributed.gather_objects(found)[0][0]


def _first(config: RunConfig, given: set[str], init: str | Path | None) -> list[str]:
    """What is settled before the rule: all that has to agree with the run to start from, or else which CLIP it is."""
    if init is not None:
        if "model.method" in given:
            check_method(init, config.model.method, "--method")
        return fields_to_agree(init, given, whole=True)
    return [f"model.clip={REAL[0]}"] if not given & {"model.clip", "model.pretrained"} and is_kept(*REAL) else []


def _plan(
    first: list[str],
    overrides: Sequence[str],
    given: set[str],
    device: torch.device,
    minutes: float | None,
    lists: TrainLists,
) -> Plan:
    """What the rule says of these videos and this machine, with as many steps as fit into the time."""
    given = given | {field.partition("=")[0] for field in first}
    config = load_config(auto.RECIPE, [*first, *overrides])
    annotations, names = training_list(config)
    clip = base_clip(config.model)
    stem, blocks = open_vision(clip)
    tower = auto.Tower(stem.num_prefix_tokens + math.prod(stem.grid), stem.width, len(blocks))
    processes = distributed.world_size()
    machine = auto.this_machine(device, processes)
    fields = auto.choose(config, given, len(annotations), names, machine, tower)
    config = load_config(auto.RECIPE, [*first, *_written(fields), *overrides])
    clips = clips_per_pass(config) * config.optim.accumulate * processes
    per_clip = None if processes > 1 else seconds_per_clip(config, device, clip)
    if minutes is not None and per_clip is not None:
        fitting = auto.steps_in(60 * minutes, per_clip, clips, lists.counts["val"])
        if fitting < 1:
            raise InputError(
                f"--minutes {minutes:g} is too short: a step takes {clips * per_clip:.2g} seconds here, and "
                f"{auto.ROUNDS + 1} validations of {lists.counts['val']} videos are made"
            )
        if fitting < auto.steps_in_all(config, len(annotations), processes):
            repeat, epochs = auto.epochs_of(fitting, len(annotations), clips)
            fields |= {"data.repeat": repeat, "optim.epochs": epochs, "optim.warmup_epochs": auto.WARM_UP * epochs}
            config = load_config(auto.RECIPE, [*first, *_written(fields), *overrides])
    steps = auto.steps_in_all(config, len(annotations), processes)
    seen = steps * clips + (config.optim.epochs + 1) * lists.counts["val"]
    expected = None if per_clip is None else seen * per_clip / 60
    return Plan([*first, *_written(fields)], steps, clips, per_clip, expected, minutes)


def _written(fields: dict[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in fields.items()]


class _EnoughError(Exception):
    """The speed has been measured."""


def seconds_per_clip(config: RunConfig, device: torch.device, clip: nn.Module) -> float | None:
    """How long a clip of training takes, by the first steps of a run that is thrown away; None where it has one step.

    Args:
        config: the run.
        device: where to train.
        clip: the run's CLIP, for this call alone, as its weights may be rounded.

    Raises:
        InputError: what the run itself would raise.
        Stopped: a signal came.
    """
    times: list[float] = []

    def on_step(done: StepsDone) -> None:
        times.append(time.monotonic())
        if len(times) > _TIMED_STEPS or (len(times) > 1 and times[-1] - times[0] >= _TIMED_SECONDS):
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        short = deepcopy(config)
        short.output, short.data.val, short.checkpoint_every, short.loggers = f"{folder}/run", None, 0, []
        try:
            trainer.run(short, device=device, clip=clip, quiet=True, on_step=on_step)
        except _EnoughError:
            pass
        except Stopped as stop:
            line = "stopped while the speed was measured; nothing is trained yet"
            raise Stopped(line, stop.exit_code - 128) from None
    if len(times) < 2:
        return None
    clips = clips_per_pass(config) * config.optim.accumulate
    return (times[-1] - times[0]) / (len(times) - 1) / clips


def describe(config: RunConfig, lists: TrainLists, plan: Plan, device: torch.device) -> list[str]:
    """The plan in a few lines."""
    model, optim = config.model, config.optim
    train, val = lists.counts["train"], lists.counts["val"]
    lines = [f"{train} videos to train on, {val} to score by, {lists.classes_used} classes"]
    if model.clip == TINY:
        lines.append(
            f"{model.method} on the bundled tiny CLIP, which knows little but simple shapes; for real videos "
            f"give --clip {REAL[0]}, whose weights are downloaded once"
        )
    else:
        lines.append(f"{model.method} on {model.clip} ({model.pretrained})")
    _, names = training_list(config)
    if not config.data.flip and (found := classes_of_left_and_right(names)):
        lines.append(f"clips are not mirrored: classes tell left from right ({some(found)})")
    passes = config.data.repeat * optim.epochs
    lines.append(
        f"{plan.steps} steps of {plan.clips} clips, {passes} passes over the videos, in {optim.precision} on the "
        f"{device.type}"
    )
    if plan.minutes is not None and plan.per_clip is not None:
        lines.append(f"about {plan.minutes:.1f} minutes, by a measured {1 / plan.per_clip:.1f} clips per second")
    return lines
