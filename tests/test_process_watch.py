"""Processes that are killed, stopped or end with an error, while the others do what notices nothing of it."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip import distributed, process_watch
from m2clip.errors import InputError, LostProcessError
from m2clip.process_watch import Watch
from tests.train.survival_run import PROCESSES
from tests.train.test_distributed import free_port


def sleep_in_c() -> None:
    """Wait where no Python code runs, as for a collective on a GPU."""
    ctypes.CDLL(None).sleep(600)


def sleep_in_python() -> None:
    while True:
        time.sleep(0.05)


def wait_for_the_others() -> None:
    """A collective that fails by itself where a connection breaks."""
    while True:
        distributed.gather_objects(os.getpid())


def fail() -> None:
    time.sleep(1)
    raise InputError("the list is empty")


def leave() -> None:
    """End well, before the others do."""


def leave_by_exit() -> None:
    sys.exit(0)


def stay() -> None:
    """End well, after the others, and after more than the time that is left where one is lost."""
    time.sleep(4)


def member(rank: int, size: int, port: int, limit: float, work: str, folder: Path) -> None:
    """One process of a group, run as a command is."""
    from m2clip import cli

    with (folder / "log").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(1)
    process_watch.GRACE = 1.0
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})

    if work.startswith("bare_"):  # a program of somebody else, which leaves the group by ending
        distributed.init(limit, "cpu")
        (folder / f"ready{rank}").touch()
        globals()[work.removeprefix("bare_")]()
        return

    def run(args: argparse.Namespace) -> None:
        distributed.init(limit, "cpu")
        try:
            (folder / f"ready{rank}").touch()
            with distributed.report_lost_processes():
                globals()[work]()
        finally:
            distributed.shutdown()

    os._exit(cli._run(argparse.Namespace(run=run)))


def start(works: list[str], limit: float, folder: Path, missing: int | None = None) -> list[Any]:
    """Processes with this to do, of which one may be missing; all others have joined unless there is."""
    port, size = free_port(), len(works)
    numbers = [number for number in range(size) if number != missing]
    found = [
        PROCESSES.Process(target=member, args=(number, size, port, limit, works[number], folder)) for number in numbers
    ]
    for process in found:
        process.start()
    while missing is None and any(not (folder / f"ready{number}").exists() for number in numbers):
        assert all(process.is_alive() for process in found)
        time.sleep(0.05)
    return found


def ends(processes: list[Any], folder: Path) -> tuple[list[int], list[str]]:
    """Exit codes, and the lines that were told; who does not end is killed."""
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    lines = (folder / "log").read_text().splitlines()  # some are PyTorch's, about connections that it tries again
    return [process.exitcode for process in processes], [line for line in lines if line.startswith("m2clip: ")]


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("work", ["sleep_in_c", "sleep_in_python", "wait_for_the_others"])
def test_a_killed_process_ends_the_others_in_one_line(work: str, lost: int, tmp_path: Path) -> None:
    processes = start([work] * 3, 300, tmp_path)
    os.kill(processes[lost].pid, signal.SIGKILL)
    codes, lines = ends(processes, tmp_path)
    assert codes == [-signal.SIGKILL if number == lost else 3 for number in range(3)]
    (line,) = lines
    assert line.startswith(f"m2clip: process {lost} is gone, killed or out of memory (numbered 0 to 2)")
    assert "start again" in line


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("work", ["sleep_in_c", "wait_for_the_others"])
def test_a_stopped_process_is_given_up_after_the_timeout(work: str, lost: int, tmp_path: Path) -> None:
    processes = start([work] * 2, 4, tmp_path)
    os.kill(processes[lost].pid, signal.SIGSTOP)
    processes[1 - lost].join(60)
    processes[lost].kill()
    codes, (line,) = ends(processes, tmp_path)
    assert codes[1 - lost] == 3 and f"process {lost} did not answer in time" in line


def test_a_process_that_is_stopped_for_a_while_is_waited_for(tmp_path: Path) -> None:
    processes = start(["stay", "stay"], 20, tmp_path)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(processes[1].pid, signal.SIGCONT)
    assert ends(processes, tmp_path) == ([0, 0], [])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_ends_with_an_error_is_named_with_it(lost: int, tmp_path: Path) -> None:
    works = ["sleep_in_c", "sleep_in_c"]
    works[lost] = "fail"
    codes, lines = ends(start(works, 300, tmp_path), tmp_path)
    assert codes[lost] == 2 and codes[1 - lost] == 3
    own, other = sorted(lines, key=len)
    assert own == "m2clip: the list is empty"
    assert f"process {lost} ended with: the list is empty (numbered 0 to 1)" in other


@pytest.mark.parametrize("lost", [0, 1])
def test_so_is_one_that_raises_outside_of_a_command(lost: int, tmp_path: Path) -> None:
    works = ["sleep_in_c", "sleep_in_c"]
    works[lost] = "bare_fail"
    codes, (line,) = ends(start(works, 300, tmp_path), tmp_path)
    assert codes[lost] == 1 and codes[1 - lost] == 3
    assert f"process {lost} ended with: the list is empty (numbered 0 to 1)" in line


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("leaving", ["leave", "bare_leave", "bare_leave_by_exit"])
def test_a_process_that_ends_well_ends_no_other(first: int, leaving: str, tmp_path: Path) -> None:
    works = ["stay", "stay"]
    works[first] = leaving
    assert ends(start(works, 300, tmp_path), tmp_path) == ([0, 0], [])


def test_a_process_that_waits_elsewhere_is_named_by_those_whose_collective_failed(tmp_path: Path) -> None:
    processes = start(["wait_for_the_others", "sleep_in_c", "wait_for_the_others"], 3, tmp_path)
    codes, (line,) = ends(processes, tmp_path)
    assert codes == [3, 3, 3] and "process 1 did not answer in time" in line


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_came(missing: int, tmp_path: Path) -> None:
    codes, (line,) = ends(start(["stay", "stay"], 3, tmp_path, missing), tmp_path)
    assert codes == [3] and "did not find each other within 3 s" in line


def test_strangers_are_no_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store, members = torch.distributed.HashStore(), []
    main = threading.Thread(target=lambda: members.append(Watch(0, 2, store, 60)))
    main.start()
    port = int(store.get("m2clip/watch").split()[0])
    for words in (b"GET / HTTP/1.1\r\n", b"", b"0" * 32 + b" 1".ljust(32), b"\xff" * 64):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    members.append(Watch(1, 2, store, 60))
    main.join()
    for each in members:
        each.leave()


def test_a_connection_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(TimeoutError):
        Watch(0, 2, torch.distributed.HashStore(), 0.2)
    store = torch.distributed.HashStore()
    store.set("m2clip/watch", f"{free_port()} 127.0.0.1 {'0' * 32}")
    with pytest.raises(TimeoutError, match="process 0 cannot be reached"):
        Watch(1, 2, store, 0.2)


@pytest.mark.parametrize(("given", "taken"), [(None, "2"), ("1", "1")])
def test_nccl_ends_the_collective_and_not_the_process(
    given: str | None, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.setenv(name, "")  # so that it is put back afterwards
    monkeypatch.delenv(name) if given is None else monkeypatch.setenv(name, given)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    seen: list[Any] = []

    def join(backend: str, **named: Any) -> None:
        seen.append((backend, os.environ[name], named["timeout"].total_seconds()))

    class FakeWatch:
        def __init__(self, *arguments: Any) -> None:
            seen.append(arguments)

        def leave(self) -> None:
            pass

    monkeypatch.setattr(distributed, "pick_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    monkeypatch.setattr(distributed, "default_store", lambda: "store")
    monkeypatch.setattr(distributed, "Watch", FakeWatch)
    group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for variable, value in group.items():
        monkeypatch.setenv(variable, value)
    distributed.init(7)
    distributed.shutdown()
    assert seen == [("nccl", taken, 7.0), (0, 2, "store", 7)]


def test_aborted_collectives_are_losses() -> None:
    for kind in (torch.distributed.DistBackendError, torch.distributed.DistNetworkError):
        assert distributed._is_loss(kind("NCCL communicator was aborted on rank 0"))
    assert not distributed._is_loss(RuntimeError("out of memory"))
    assert LostProcessError.exit_code == 3
