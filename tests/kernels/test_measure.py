"""The tuner: what counts as faster, and that a whole run ends in a file that is read again."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch

from m2clip.cli import main
from m2clip.kernels.dispatch import OPERATIONS
from m2clip.kernels.tuning import candidates, measure, store

CPU = torch.device("cpu")


class Tile(NamedTuple):
    rows: int
    warps: int


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    store.forget()
    yield tmp_path
    store.forget()


@pytest.fixture
def clock(monkeypatch):
    """Candidates return how long they take."""
    monkeypatch.setattr(measure, "_seconds", lambda run, device: run())


def test_the_fastest_wins_only_if_it_is_clearly_faster(clock):
    candidates = {"rule": lambda: 1.0, "close": lambda: 0.99, "slow": lambda: 2.0}
    assert measure.fastest("k", candidates, ["rule"], CPU).winner == "rule"
    candidates["fast"] = lambda: 0.5
    choice = measure.fastest("k", candidates, ["rule"], CPU)
    assert choice.winner == "fast" and choice.seconds["slow"] == 2.0


def test_a_candidate_must_beat_every_default(clock):
    candidates = {"reference": lambda: 1.0, "reference, compiled": lambda: 0.4, "triton": lambda: 0.5}
    assert measure.fastest("op", candidates, list(candidates)[:2], CPU).winner == "reference, compiled"


def test_candidates_that_cannot_run_are_told_and_defaults_that_cannot_are_an_error(clock):
    def out_of_memory():
        raise RuntimeError("out of resource: shared memory\nmore lines")

    choice = measure.fastest("k", {"rule": lambda: 1.0, "large": out_of_memory}, ["rule"], CPU)
    assert choice.winner == "rule" and choice.failed == {"large": "RuntimeError: out of resource: shared memory"}
    with pytest.raises(RuntimeError, match="k does not run here: RuntimeError: out of resource"):
        measure.fastest("k", {"rule": out_of_memory, "other": lambda: 1.0}, ["rule"], CPU)


def test_configurations_are_told_apart_by_their_fields(clock):
    kernel = candidates.KernelCandidates(
        "mixer", (384, torch.bfloat16), Tile(8, 4), [Tile(8, 8), Tile(16, 4)], lambda tile: tile[0] / tile[1]
    )
    config, choice = measure.best_config(kernel, CPU)
    assert config == Tile(8, 8)
    assert choice.name == "mixer 384 bfloat16" and choice.winner == "(8, 8)"


def test_a_whole_run_is_kept(monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the C++ compiler takes minutes
    choices = []
    shape = candidates.Shape(16, 8, 2, (2, 2), 2, torch.float32, classes=5)
    path = measure.tune(shape, CPU, choices.append)
    known = store.read(path)
    operations = [choice.name for choice in choices]
    assert operations == [op for op in OPERATIONS if op != "masked_word_loss"]  # which is one for all devices
    assert set(known.winners) == {f"{name} float32 {8 if 'adapter' in name else 0}" for name in operations}
    for choice in choices:
        assert measure.REFERENCE in choice.seconds and measure.COMPILED in choice.seconds
        assert known.winners[next(key for key in known.winners if key.startswith(choice.name))] == choice.winner


def test_the_command_needs_a_gpu_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    assert "measures an NVIDIA GPU, and PyTorch sees none" in capsys.readouterr().err
