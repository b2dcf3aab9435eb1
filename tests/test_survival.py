"""A run that is killed, stopped or out of disk space ends with the weights and records of one that never was.

M2CLIP_KILLS is how many times the run is killed (3).
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from m2clip.run_state import list_checkpoints
from m2clip.stopping import StopRequest
from tests.survival_run import STEPS, Accident, assert_same_result, render, run, start, words
from tests.training_run import read_losses

KILLS = int(os.environ.get("M2CLIP_KILLS", "3"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder, began = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert run(words(videos, folder), folder.with_suffix(".log")) == 0
    seconds = time.monotonic() - began
    assert [row["step"] for row in read_losses(folder) if row["loss"]] == [str(step + 1) for step in range(STEPS)]
    assert len((folder / "bad_videos.jsonl").read_text().splitlines()) == 2
    return folder, seconds


@pytest.fixture(scope="module")
def whole(undisturbed: tuple[Path, float]) -> Path:
    return undisturbed[0]


def test_killed_at_any_moment(videos: Path, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = undisturbed
    rng, log = random.Random(0), tmp_path / "run.log"
    kills = runs = 0
    while True:
        folder = tmp_path / f"run_{runs}"
        if kills == KILLS:
            code, moment = run(words(videos, folder), log), "the end"
        elif rng.random() < 0.5:
            # While files are written: checkpoints, records, adapters, results of validations.
            accident = Accident("kill", "", rng.randint(1, 60))
            code, moment = run(words(videos, folder), log, accident), f"event {accident.count}"
        else:
            process, moment = start(words(videos, folder), log), f"{rng.uniform(0.1, 0.9) * seconds:.2f} s"
            process.join(float(moment.split()[0]))
            process.kill()
            process.join()
            code = process.exitcode
        if code == 0:
            assert_same_result(folder, whole)
            runs += 1
            if kills == KILLS:
                break
            continue
        assert code == -signal.SIGKILL
        kills += 1
        newest = [path.name for path in list_checkpoints(folder / "checkpoints")][:1]
        left = sorted(path.name for path in folder.rglob(".*"))
        print(f"run {runs}, kill {kills} at {moment}: newest checkpoint {newest}, half-written {left}")
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("what", "where", "count"),
    [
        ("SIGTERM", "metrics.csv", 5),
        ("SIGINT", ".writing-", 9),
        ("SIGTERM", "bad_videos.jsonl", 1),
        ("SIGINT", "adapters.safetensors", 2),
    ],
)
def test_signals_end_with_a_checkpoint(
    videos: Path, whole: Path, tmp_path: Path, what: str, where: str, count: int
) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    code = 128 + signal.Signals[what]
    assert run(words(videos, folder, "checkpoint_every=3"), log, Accident(what, where, count)) == code
    (line,) = [line for line in log.read_text().splitlines() if "m2clip: " in line]
    match = re.search(r"stopped after step (\d+); start again to go on from there", line)
    assert match and list_checkpoints(folder / "checkpoints")[0].name == f"step-{int(match[1]):09d}"
    assert run(words(videos, folder, "checkpoint_every=3"), log) == 0
    assert_same_result(folder, whole)


def test_one_press_of_two_keys_and_a_second_press(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stop = StopRequest()
    with stop.active():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # from torchrun, which the terminal has told too
        clock[0] += 5
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested and stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (".writing-", 8),
        ("metrics.csv", 6),
        ("adapters.safetensors", 3),
        ("bad_videos.jsonl", 2),
        ("eval_epoch", 1),
        ("tfevents", 1),
        ("config.yaml", 1),
    ],
)
def test_a_full_disk_costs_nothing(videos: Path, whole: Path, tmp_path: Path, where: str, count: int) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    assert run(words(videos, folder), log, Accident("full", where, count)) == 2
    (line,) = [line for line in log.read_text().splitlines() if "m2clip: " in line]
    assert re.search(r"could not be written|cannot be written", line) and "make room and start again" in line
    assert run(words(videos, folder), log) == 0
    assert_same_result(folder, whole)
