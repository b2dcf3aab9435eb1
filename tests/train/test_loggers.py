"""Loggers behind one interface, with small packages in the places of wandb and mlflow."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m2clip.config import load_config
from m2clip.errors import InputError, Notice
from m2clip.train import trainer as train
from m2clip.train.log import RunLog
from m2clip.train.loggers import RUN_IDS, check_loggers, open_loggers
from tests.train.training_run import build_clip, build_config, read_losses, write_videos

WANDB = """
calls, broken = [], False

class Settings:
    def __init__(self, **named): self.named = named

class Run:
    def define_metric(self, *names, **named): pass
    def log(self, values):
        if broken: raise ConnectionError("the server is\\ngone")
        calls.append(("log", values))
    def finish(self): calls.append(("finish",))

def init(**named):
    calls.append(("init", named))
    if broken: raise RuntimeError("no key: log in first.")
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace as Thing
calls, experiments = [], {}

class MlflowClient:
    def get_experiment_by_name(self, name): return experiments.get(name)
    def create_experiment(self, name):
        experiments[name] = Thing(experiment_id=str(len(experiments)))
        return experiments[name].experiment_id
    def create_run(self, experiment, run_name):
        calls.append(("create", experiment, run_name))
        return Thing(info=Thing(run_id=f"run{len(calls)}"))
    def update_run(self, run, status): calls.append((status, run))
    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100
        calls.append(("log", run, [(m.key, m.value, m.step) for m in metrics], {p.key: p.value for p in params}))
    def set_terminated(self, run): calls.append(("end", run))
"""
ENTITIES = """
from collections import namedtuple
Metric = namedtuple("Metric", "key value timestamp step")
Param = namedtuple("Param", "key value")
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The modules wandb and mlflow of this test."""
    folder = tmp_path / "packages"
    (folder / "mlflow").mkdir(parents=True)
    (folder / "wandb.py").write_text(WANDB)
    (folder / "mlflow" / "__init__.py").write_text(MLFLOW)
    (folder / "mlflow" / "entities.py").write_text(ENTITIES)
    names = ("wandb", "mlflow", "mlflow.entities")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    import mlflow
    import wandb

    yield wandb, mlflow
    for name in names:
        sys.modules.pop(name, None)


def log_of(folder: Path, *loggers: str, step: int = 0) -> RunLog:
    config = load_config(None, [f"output={folder}", f"loggers={','.join(loggers)}", "optim.lr=0.5"])
    check_loggers(config)
    folder.mkdir(exist_ok=True)
    return RunLog(folder, 9, step, quiet=True, loggers=open_loggers(config, step))


def test_all_loggers_get_the_numbers(packages: tuple[Any, Any], tmp_path: Path) -> None:
    wandb, mlflow = packages
    log = log_of(tmp_path / "run", "tensorboard", "wandb", "mlflow", "wandb")
    log.write(3, 1, {"loss": 0.5, "val_top1": 0.25})
    log.close()
    (_, named), logged, ended = wandb.calls
    assert (named["project"], named["name"], named["dir"]) == ("m2clip", "run", str(tmp_path / "run"))
    assert named["config"]["optim.lr"] == 0.5 and named["settings"].named == {"console": "off"}
    assert (logged, ended) == (("log", {"loss": 0.5, "val/top1": 0.25, "step": 3}), ("finish",))
    created, params, metrics, end = mlflow.calls
    assert created == ("create", "0", "run") and params[3]["optim.lr"] == "0.5"
    assert metrics[2] == [("loss", 0.5, 3), ("val/top1", 0.25, 3)] and end == ("end", "run1")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_same_run_goes_on(packages: tuple[Any, Any], tmp_path: Path) -> None:
    wandb, mlflow = packages
    for step in (0, 3):
        log_of(tmp_path / "run", "wandb", "mlflow", step=step).close()
    first, second = (call[1] for call in wandb.calls if call[0] == "init")
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert [call[0] for call in mlflow.calls] == ["create", "log", "end", "RUNNING", "end"]
    ids = json.loads((tmp_path / "run" / RUN_IDS).read_text())
    assert ids == {"wandb": first["id"], "mlflow": "run1"}
    log_of(tmp_path / "other", "wandb").close()
    assert wandb.calls[-2][1]["id"] != first["id"]
    for text in ("", "[]", '{"wandb": 3}'):
        (tmp_path / "run" / RUN_IDS).write_text(text)
        log_of(tmp_path / "run", "wandb").close()


def test_a_logger_that_fails_warns_once(packages: tuple[Any, Any], tmp_path: Path) -> None:
    wandb, mlflow = packages
    log = log_of(tmp_path, "wandb", "mlflow")
    log.write(1, 1, {"loss": 1.0})
    wandb.broken = True
    with pytest.warns(Notice, match=r"wandb has failed \(the server is gone\): training goes on without it") as told:
        log.write(2, 1, {"loss": 0.5})
        log.write(3, 1, {"loss": 0.25})
    log.close()
    assert len(told) == 1 and (tmp_path / "warnings.txt").read_text().count("wandb") == 1
    assert [row["step"] for row in log.rows()] == ["1", "2", "3"]
    assert [call[2][0][2] for call in mlflow.calls if call[0] == "log" and call[2]] == [1, 2, 3]
    with pytest.raises(InputError, match="wandb cannot be started: no key: log in first; leave it out of loggers"):
        log_of(tmp_path, "mlflow", "wandb")
    assert mlflow.calls[-1][0] == "end"


def test_what_is_not_installed_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # the folder that the package would write to
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        config = load_config(None, [f"loggers={name}"])
        with pytest.raises(InputError, match=f"{name} is not installed: pip install {name}, or leave it out"):
            train.run(config)


def test_names_of_loggers() -> None:
    for text, expected in (
        ("wandb", ["wandb"]),
        ("wandb, tensorboard", ["wandb", "tensorboard"]),
        ("[mlflow]", ["mlflow"]),
        ("[]", []),
    ):
        assert load_config(None, [f"loggers={text}"]).loggers == expected
    assert load_config().loggers == ["tensorboard"] and load_config().loggers is not load_config().loggers
    for text in ("wandbb", "[1]", "null", "{a: 1}"):
        with pytest.raises(InputError, match="loggers must be a list, each of it one of tensorboard, wandb, mlflow"):
            load_config(None, [f"loggers={text}"])


def test_a_run_and_its_resumption(packages: tuple[Any, Any], tmp_path: Path) -> None:
    wandb, _ = packages
    videos = write_videos(tmp_path / "videos")
    fields = ("loggers=[wandb]", f"data.val={videos}", "log_every=1")
    for epochs in (1, 2):
        run = train.run(
            build_config(videos, tmp_path / "run", *fields, f"optim.epochs={epochs}"),
            clip=build_clip(),
            device="cpu",
            quiet=True,
        )
    rows = [row for row in read_losses(run) if row["loss"]]
    logged = [call[1] for call in wandb.calls if call[0] == "log" and "loss" in call[1]]
    assert [(str(one["step"]), str(one["loss"])) for one in logged] == [(row["step"], row["loss"]) for row in rows]
    assert len({call[1]["id"] for call in wandb.calls if call[0] == "init"}) == 1
    assert not (run / "tensorboard").exists()
    predictions = (run / "val_predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 1 + len(videos.read_text().splitlines())
