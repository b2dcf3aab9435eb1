"""A run that is killed, stopped or out of disk space ends with the weights and records of one that never was.

M2CLIP_KILLS is how many times the run is killed (2).
"""

from __future__ import annotations

import math
import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from m2clip.train.state import list_checkpoints
from m2clip.train.stopping import StopRequest
from tests.train.survival_run import (
    STEPS,
    Accident,
    assert_same_result,
    children,
    let_compute,
    problems,
    render,
    run,
    start,
    wait_for,
    words,
)
from tests.train.training_run import read_losses

KILLS = int(os.environ.get("M2CLIP_KILLS", "2"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(words(videos, folder), folder.with_suffix(".log"))
    seconds = let_compute(process, math.inf)
    assert process.exitcode == 0
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
        newest = [path.name for path in list_checkpoints(folder / "checkpoints")][:1]
        if kills == KILLS or newest == [f"step-{STEPS:09d}"]:
            code, moment = run(words(videos, folder), log), "the end"  # also where only little is left to be killed in
        elif rng.random() < 0.5:
            # While files are written: checkpoints, records, adapters, results of validations.
            accident = Accident("kill", "", rng.randint(1, 150))
            code, moment = run(words(videos, folder), log, accident), f"event {accident.count}"
        else:
            process, moment = start(words(videos, folder), log), f"{rng.uniform(0.2, 0.8) * seconds:.2f} s"
            let_compute(process, float(moment.split()[0]))
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
        left = sorted(path.name for path in folder.rglob(".*"))
        print(f"run {runs}, kill {kills} at {moment}, begun at checkpoint {newest}, half-written {left}")
    assert "Traceback" not in log.read_text()


def test_signals_end_with_a_checkpoint(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    # In a step, while a checkpoint is written, while adapters are.
    accidents = [
        Accident("SIGTERM", "metrics.csv", 5),
        Accident("SIGINT", ".writing-", 4),
        Accident("SIGTERM", "adapters.safetensors", 6),
    ]
    for accident in accidents:
        log.write_text("")
        assert run(words(videos, folder), log, accident) == 128 + signal.Signals[accident.what]
        (line,) = problems(log)
        match = re.search(r"stopped after step (\d+); start again to resume from there", line)
        assert match and list_checkpoints(folder / "checkpoints")[0].name == f"step-{int(match[1]):09d}"
    # Where it still reads what there is, it stops at once.
    assert run(words(videos, folder), log, Accident("SIGTERM", "tensors.safetensors", 1)) == 143
    assert run(words(videos, folder), log) == 0
    assert_same_result(folder, whole)


def test_a_signal_ends_a_validation_at_once(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    assert run(words(videos, folder, "eval.batch_size=2"), log, Accident("SIGTERM", "validation", 1)) == 143
    assert "stopped; start again to resume from the newest checkpoint" in log.read_text()
    assert not list(folder.glob("eval_*.json"))
    assert run(words(videos, folder, "eval.batch_size=2"), log) == 0
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


def test_a_full_disk_costs_nothing(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    places = {"config.yaml": 1, ".writing-": 2, "metrics.csv": 3, "bad_videos.jsonl": 3, "adapters.safetensors": 3}
    for place, count in {**places, "eval_epoch": 1, "tfevents": 1}.items():
        log.write_text("")
        assert run(words(videos, folder), log, Accident("full", place, count)) == 2, place
        (line,) = problems(log)
        assert re.search(r"could not be written|cannot be written", line) and "File too large" in line
    assert run(words(videos, folder), log) == 0
    assert_same_result(folder, whole)


def test_killed_decoding_processes_cost_nothing(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    process = start(words(videos, folder, "data.workers=2"), log)
    killed = 0
    for step in (2, 6, 10, 16, 20):
        wait_for(folder, step, process.is_alive)
        for child in children(process.pid)[:1]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
                killed += 1
    process.join(300)
    assert process.exitcode == 0 and killed
    assert_same_result(folder, whole)
    assert "a decoding process was ended by SIGKILL (out of memory?); decoding starts anew" in log.read_text()
