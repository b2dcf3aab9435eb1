"""Measurements of a GPU as files."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from m2clip.kernels import records
from m2clip.kernels.tuning import store
from m2clip.kernels.tuning.store import Measurements, TuningError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.setattr(records, "_told", set())
    store.forget()
    yield tmp_path
    store.forget()


def winner(width, dtype=torch.bfloat16, op="ted_adapter"):
    """What was measured to be fastest on the made-up GPU."""
    return store.winner(0, op, dtype, width)


@pytest.fixture
def gpu(monkeypatch):
    """A made-up GPU, as far as questions about it go."""
    monkeypatch.setattr(store, "gpu", lambda index: ("NVIDIA Example 7", (9, 0)))
    monkeypatch.setattr(store, "_number", lambda index: index or 0)


def test_nothing_is_known_without_a_file(gpu):
    assert winner(384) == ""
    assert store.known_of(torch.device("cuda", 0)).config("mixer_forward", 384, torch.bfloat16) is None


def test_saved_measurements_are_read_again_and_added_to(gpu, folder):
    configs = {"mixer_forward 384 bfloat16": [8, 64, 4], "ted_adapter_plan 38 bfloat16 90": ["wide"]}
    first = Measurements({"ted_adapter bfloat16 384": "triton"}, configs)
    path = store.save("NVIDIA Example 7", first)
    assert path == folder / "nvidia-example-7.json"
    store.save("NVIDIA Example 7", Measurements({"ted_adapter bfloat16 64": "cuda"}))
    assert winner(384) == "triton"
    assert winner(64) == "cuda"
    assert winner(384, torch.float16) == ""
    assert store.known_of(torch.device("cuda", 0)).config("mixer_forward", 384, torch.bfloat16) == [8, 64, 4]
    assert store.known_of(torch.device("cuda", 0)).config("ted_adapter_plan", 38, torch.bfloat16, 90) == ["wide"]
    assert json.loads(path.read_text())["device"] == "NVIDIA Example 7"


def test_own_measurements_come_before_those_of_the_architecture(gpu, monkeypatch):
    known = Measurements({"ted_adapter bfloat16 384": "cuda", "soft_target_kl float32 0": "triton"})
    monkeypatch.setitem(store.OF_ARCHITECTURE, (9, 0), known)
    assert winner(384) == "cuda"
    store.save("NVIDIA Example 7", Measurements({"ted_adapter bfloat16 384": "triton"}))
    assert winner(384) == "triton"
    assert winner(0, torch.float32, "soft_target_kl") == "triton"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "holds no measurements of m2clip"),
        ("[]", "holds no measurements of m2clip"),
        ("[" * 100_000, "holds no measurements of m2clip .*nested too deeply"),
        ('{"format": 1, "winners": [], "configs": {}}', "holds no measurements of m2clip"),
        ('{"format": 1, "winners": {"ted_adapter bfloat16 x": "cuda"}, "configs": {}}', "holds no measurements"),
        ('{"format": 1, "winners": {"ted_adapter bfloat16 384": 3}, "configs": {}}', "holds no measurements"),
        ('{"format": 1, "winners": {}, "configs": {"mixer_forward": [8, "x"]}}', "holds no measurements"),
        ('{"format": 1, "winners": {}, "configs": {}, "record_sha256": "0"}', "damaged or was changed"),
        ('{"format": 0, "winners": {}, "configs": {}}', "another version of m2clip"),
    ],
)
def test_files_that_are_none_of_ours_are_told_of_once_and_passed_over(gpu, folder, text, words, capfd):
    path = folder / "nvidia-example-7.json"
    path.write_text(text)
    with pytest.raises(TuningError, match=words) as raised:
        store.read(path)
    assert str(path) in str(raised.value) and "m2clip tune" in str(raised.value)
    assert winner(384) == winner(64) == ""
    assert capfd.readouterr().err == f"m2clip: {raised.value}; until then static rules hold\n"


def test_nobody_without_a_home_is_stopped(gpu, monkeypatch, tmp_path):
    monkeypatch.delenv(store.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert winner(384) == ""
    with pytest.raises(OSError, match="name a folder with"):
        store.save("a", Measurements())


def test_two_that_measure_at_once_lose_nothing(folder):
    code = (
        "import sys; from m2clip.kernels.tuning import store\n"
        "for width in range(20):\n"
        "    store.save('a', store.Measurements({f'ted_adapter float32 {sys.argv[1]}{width:02}': 'triton'}))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in (1, 2, 3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert len(store.read(folder / "a.json").winners) == 60


def test_only_small_regular_files_are_read(folder, monkeypatch):
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(TuningError, match="no regular file"):
        store.read(folder / "pipe.json")
    path = store.save("a", Measurements())
    monkeypatch.setattr(records, "MOST_BYTES", 10)
    with pytest.raises(TuningError, match="more than 10 bytes"):
        store.read(path)


def test_a_link_stays_and_an_old_file_outlives_a_failure(folder, tmp_path_factory, monkeypatch):
    target = tmp_path_factory.mktemp("elsewhere") / "a.json"
    (folder / "a.json").symlink_to(target)
    path = store.save("a", Measurements({"bias_gelu float32 0": "triton"}))
    assert path.is_symlink() and store.read(target).winners == {"bias_gelu float32 0": "triton"}
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.save("a", Measurements())
    assert store.read(target).winners and [each.name for each in target.parent.iterdir()] == ["a.json"]
