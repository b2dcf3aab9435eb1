"""Programs that show the numbers of a run: TensorBoard, Weights & Biases and MLflow, behind one interface."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from m2clip.config import RunConfig
from m2clip.config_fields import flatten
from m2clip.errors import InputError
from m2clip.files.disk import read_json, write_json

RUN_IDS = "loggers.json"  # what other programs call the run, by which it goes on there
_PROJECT = "m2clip"  # of Weights & Biases, and experiment of MLflow, where the user names no other
_PARAMS, _PARAM_LENGTH = 100, 500  # MLflow's limits, of a call and of a value


class Logger(Protocol):
    """What a run tells its numbers."""

    name: ClassVar[str]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take note of the numbers after an optimiser step; names have a group before a slash, such as "loss/vc"."""

    def close(self) -> None:
        """Write what is left; the run has ended or was stopped."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self, config: RunConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(config.output, "tensorboard")), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `Logger.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As `Logger.close`."""
        self._writer.close()


class Wandb:
    """Weights & Biases: its variables such as WANDB_MODE=offline and WANDB_PROJECT count."""

    name: ClassVar[str] = "wandb"

    def __init__(self, config: RunConfig, step: int) -> None:
        import wandb

        folder = Path(config.output)
        ids = _run_ids(folder)
        if self.name not in ids:
            ids[self.name] = secrets.token_hex(4)
            write_json(ids, folder / RUN_IDS)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=ids[self.name],
            resume="allow",
            dir=str(folder),
            config=flatten(config),
            settings=wandb.Settings(console="off"),  # what is printed is left alone
        )
        # Its own steps only grow. After a kill some of ours come a second time.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `Logger.log`."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """As `Logger.close`."""
        self._run.finish()


class MLflow:
    """MLflow: its variables such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, config: RunConfig, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = Path(config.output)
        self._client = MlflowClient()
        ids = _run_ids(folder)
        if self.name in ids:
            self._id = ids[self.name]
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        write_json({**ids, self.name: self._id}, folder / RUN_IDS)
        params = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(config).items()]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS])

    def log(self, step: int, values: dict[str, float]) -> None:
        """As `Logger.log`."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """As `Logger.close`."""
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[RunConfig, int], Logger]] = {kind.name: kind for kind in (TensorBoard, Wandb, MLflow)}


def check_loggers(config: RunConfig) -> None:
    """Refuse, before anything is loaded, loggers whose package is not installed.

    Raises:
        InputError: with the command that installs it.
    """
    for name in config.loggers:
        found = find_spec(name)
        # A folder that is only called so, as the one that wandb writes to, has no origin.
        if found is None or found.origin is None:
            raise InputError(f"loggers: {name} is not installed: pip install {name}, or leave it out of loggers")


def open_loggers(config: RunConfig, step: int) -> list[Logger]:
    """The loggers of a run, each going on with the same run of its program; for the main process alone.

    Args:
        config: of the run.
        step: optimiser steps that were done before.

    Raises:
        InputError: one cannot be started.
    """
    opened: list[Logger] = []
    for name in dict.fromkeys(config.loggers):
        try:
            opened.append(LOGGERS[name](config, step))
        except Exception as error:
            close_loggers(opened)
            if name == TensorBoard.name:  # whose only faults are those of the disk
                raise
            raise InputError(f"{name} cannot be started: {reason(error)}; leave it out of loggers to go on") from None
    return opened


def close_loggers(loggers: list[Logger]) -> None:
    """Close all; what fails then has been told of by what was written first, or is of another program."""
    for logger in loggers:
        with suppress(Exception):
            logger.close()


def reason(error: Exception) -> str:
    """Why another program failed, in one line; the way out is often said last."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 600 else f"{text[:597]}..."


def _run_ids(folder: Path) -> dict[str, Any]:
    """What other programs call the run; nothing where it is new, or where that is not known any more."""
    try:
        found = read_json(folder / RUN_IDS)
    except (OSError, ValueError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}
