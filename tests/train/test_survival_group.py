"""Several processes: stopped together, one of them killed or hanging, started anew by torchrun's agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m2clip.train.state import list_checkpoints
from tests.train.survival_run import (
    Accident,
    assert_same_result,
    children,
    problems,
    render,
    run_elastic,
    start,
    wait_for,
    words,
)
from tests.train.test_distributed import free_port


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("videos"))


def command(videos: Path, folder: Path, *more: str) -> list[str]:
    return words(videos, folder, "optim.batch_size=2", "data.workers=0", *more)


def start_group(
    videos: Path, folder: Path, *more: str, accident: Accident | None = None, spoiled: tuple[int, ...] = ()
) -> list[Any]:
    """Two processes with one log; the accident is the first one's."""
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = folder.with_suffix(".log")
    return [
        start(command(videos, folder, *more), log, happens, spoiled, RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank, happens in enumerate((accident, None))
    ]


def join(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def told(folder: Path) -> list[str]:
    return problems(folder.with_suffix(".log"))


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert join(start_group(videos, folder)) == [0, 0]
    return folder


def test_a_signal_to_one_stops_all_after_the_same_step(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start_group(videos, folder)
    wait_for(folder, 2, processes[0].is_alive)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert join(processes) == [143, 143]
    (line,) = told(folder)
    assert "stopped" in line and list_checkpoints(folder / "checkpoints")
    assert join(start_group(videos, folder)) == [0, 0]
    assert_same_result(folder, whole)


@pytest.mark.parametrize(
    ("number", "seconds", "words"),
    [(signal.SIGKILL, 60, "process 1 is gone"), (signal.SIGSTOP, 5, "process 1 did not answer in time")],
)
def test_a_lost_process_is_named(
    videos: Path, whole: Path, tmp_path: Path, number: signal.Signals, seconds: int, words: str
) -> None:
    folder = tmp_path / "run"
    processes = start_group(videos, folder, f"timeout={seconds}")
    wait_for(folder, 4, processes[0].is_alive)
    os.kill(processes[1].pid, number)
    processes[0].join(120)
    assert processes[0].exitcode == 3
    processes[1].kill()
    assert join(processes)[1] == -signal.SIGKILL
    (line,) = told(folder)
    assert words in line and "start again" in line
    if number == signal.SIGKILL:
        assert join(start_group(videos, folder)) == [0, 0]
        assert_same_result(folder, whole)


def test_a_lost_process_is_told_where_the_others_wait_without_python(videos: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start_group(videos, folder, accident=Accident("wait", "step-000000006", 1))
    wait_for(folder, 4, processes[0].is_alive)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert join(processes) == [3, -signal.SIGKILL]
    (line,) = told(folder)
    assert "process 1 is gone" in line
    assert join(start_group(videos, folder)) == [0, 0]
    assert_same_result(folder, whole)


def test_numbers_that_are_not_finite_name_their_videos_after_a_resume_too(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert join(start_group(videos, folder, accident=Accident("SIGTERM", "metrics.csv", 5))) == [143, 143]
    stopped = int(list_checkpoints(folder / "checkpoints")[0].name.removeprefix("step-"))
    assert join(start_group(videos, folder, spoiled=tuple(range(28)))) == [2, 2]
    line = told(folder)[-1]
    assert f"not finite in 3 steps in a row, up to step {stopped + 3}" in line
    assert line.count(".mp4") == 4  # two of each process
    assert list_checkpoints(folder / "checkpoints")[0].name == f"step-{stopped:09d}"


def run_torchrun(command: list[str], log: Path, folder: Path) -> int:
    """The exit code of torchrun, whose second process is killed once."""
    options = ["--nproc-per-node=2", "--max-restarts=1", "--master-port", str(free_port()), "-m", "m2clip.cli"]
    with log.open("w") as file:
        arguments = [sys.executable, "-m", "torch.distributed.run", *options, *command]
        agent = subprocess.Popen(arguments, stdout=file, stderr=file)
        wait_for(folder, 4, lambda: agent.poll() is None)
        os.kill(children(agent.pid)[1], signal.SIGKILL)
        return agent.wait(300)


# The program torchrun imports everything five times over, so that a quick test takes its agent alone.
@pytest.mark.parametrize("program", ["agent", "torchrun"] if "M2CLIP_KILLS" in os.environ else ["agent"])
def test_torchrun_starts_all_anew(videos: Path, whole: Path, tmp_path: Path, program: str) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    words = command(videos, folder)
    assert (run_elastic(words, log, [4, 10]) if program == "agent" else run_torchrun(words, log, folder)) == 0
    assert_same_result(folder, whole)
