"""Decoding processes that are killed, crash, hang or run out of memory: every item comes once, in order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.data import loading
from m2clip.data.clips import ClipDataset, ClipSettings
from m2clip.data.lists.annotations import Annotations, VideoItem
from m2clip.data.loading import load
from m2clip.errors import InputError


class Numbers(ClipDataset):
    """Item i is the number i. Making the items in `fatal` ends the process, so many times each; -1 is always."""

    def __init__(self, folder: Path, fatal: dict[int, int] | None = None, die: Callable[[], Any] | None = None) -> None:
        items = tuple(VideoItem(folder / f"{index}.mp4", 0) for index in range(24))
        super().__init__(Annotations(items, ["a"], "list", folder / "list.txt"), ClipSettings(num_frames=1, size=8))
        self.folder, self.fatal, self.die = folder, fatal or {}, die or (lambda: os.kill(os.getpid(), signal.SIGKILL))

    def __getitem__(self, key: Any) -> Any:
        left = self.fatal.get(key, 0)
        deaths = self.folder / f"deaths_{key}"
        died = deaths.stat().st_size if deaths.exists() else 0
        if left == -1 or died < left:
            with deaths.open("ab") as file:
                file.write(b".")
            self.die()
        return torch.tensor(key)


class Isolating(Numbers):
    """As a decoder's crash is with isolated decoding: it ends no process that loads."""

    def __getitem__(self, key: Any) -> Any:
        return torch.tensor(key) if self.settings.isolate else super().__getitem__(key)


def numbers(dataset: ClipDataset, said: list[str] | None = None, **named: Any) -> list[int]:
    lines: list[str] = []
    found = [int(item) for item in load(dataset, range(24), say=lines.append, **{"workers": 2, **named})]
    if said is not None:
        said += lines
    return found


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) == handler


def exit_silently() -> None:
    os._exit(0)


def segfault() -> None:
    ctypes.string_at(0)


def bloat() -> None:
    limit = 1 << 34  # of address space; what a process has already stays
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.empty(1 << 36, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("die", "words"),
    [
        (None, r"SIGKILL \(out of memory\?\)"),
        (segfault, "SIGSEGV"),
        (exit_silently, "ended with code 0"),
        (bloat, "ran out of memory"),
    ],
)
def test_an_accident_costs_nothing(tmp_path: Path, die: Callable[[], None] | None, words: str) -> None:
    said: list[str] = []
    dataset = Numbers(tmp_path, {5: 1, 13: 1}, die)
    assert numbers(dataset, said) == list(range(24))
    assert len(said) == 2 and not dataset.settings.isolate
    assert all(re.search(words, line) and line.endswith("; decoding starts anew where it was") for line in said), said


def test_a_file_that_breaks_its_decoder_is_decoded_apart(tmp_path: Path) -> None:
    said: list[str] = []
    dataset = Isolating(tmp_path, {7: -1, 8: -1, 20: -1})
    assert numbers(dataset, said) == list(range(24))
    assert dataset.settings.isolate
    # Once for item 20 at most: from the first one on nothing ends the processes.
    assert "decoded in a process of its own" in said[-1] and 2 <= len(said) <= 4
    assert (tmp_path / "deaths_7").stat().st_size <= 4 and not (tmp_path / "deaths_20").exists()
    assert numbers(dataset, said) == list(range(24))
    assert "own" in said[-1] and len(said) <= 4


def test_the_item_that_always_ends_its_process_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    loaded = load(Numbers(tmp_path, {9: -1}), range(24), workers=2, say=said.append)
    seen = []
    with pytest.raises(InputError) as caught:
        for item in loaded:
            seen.append(int(item))  # noqa: PERF402
    assert seen == list(range(9))
    assert str(caught.value).startswith("decoding has ended 3 times in a row (a decoding process was ended by SIGKILL")
    assert str(tmp_path / "9.mp4") in str(caught.value) and "10.mp4" not in str(caught.value)
    assert len(said) <= 2 * 9


def hang() -> None:
    signal.pause()


def test_a_process_that_hangs_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    assert numbers(Numbers(tmp_path, {4: 1}, hang), said, timeout=1.0) == list(range(24))
    assert len(said) == 1 and "gave no answer for 1 s" in said[0]


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_was_suspended_is_replaced(tmp_path: Path) -> None:
    assert numbers(Numbers(tmp_path, {4: 1}, stop_itself), timeout=1.0) == list(range(24))


def test_signals_to_the_whole_group_end_no_worker(tmp_path: Path) -> None:
    said: list[str] = []

    def signal_workers() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    assert numbers(Numbers(tmp_path, {3: 1, 4: 1}, signal_workers), said) == list(range(24))
    assert not said


def test_an_end_that_a_signal_interrupts_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    process = multiprocessing.get_context("fork").Process(target=exit_silently)
    process.start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    pool = loading._Pool(None, 1, 60)
    pool.processes = [process]
    handler, original = signal.getsignal(signal.SIGCHLD), os.waitpid

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        found = original(pid, options)
        signal.raise_signal(signal.SIGCHLD)  # between the answer of the system and the note of it
        return found

    signal.signal(signal.SIGCHLD, pool._look)
    try:
        with pytest.raises(loading._DiedError):  # a little later
            with monkeypatch.context() as patched:
                patched.setattr(os, "waitpid", waitpid)
                assert process.exitcode == 0
            time.sleep(5)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_a_worker_without_its_parent_says_nothing() -> None:
    code = (
        "import os, sys, time; from m2clip.data.loading import _prepare\n"
        "parent, (read, write) = os.getpid(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    _prepare(0); sys.excepthook(OSError, OSError('first'), None); os.write(write, b'.')\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    sys.excepthook(OSError, OSError('second'), None); sys.stderr.flush(); os._exit(0)\n"
        "os.read(read, 1); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "first" in done.stderr and "second" not in done.stderr


def test_a_death_while_the_main_process_computes_does_not_reach_it(tmp_path: Path) -> None:
    seen = []
    for item in load(Numbers(tmp_path), range(24), workers=2, say=lambda line: None):
        if item == 6:
            for process in multiprocessing.active_children():
                process.kill()
                process.join()  # the signal about it has come by now
        seen.append(int(item))
    assert seen == list(range(24))


def test_without_the_main_thread(tmp_path: Path) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.extend(numbers(Numbers(tmp_path, {5: 1}))))
    thread.start()
    thread.join(60)
    assert seen == list(range(24))


def test_leaving_early_ends_the_processes(tmp_path: Path) -> None:
    loaded = load(Numbers(tmp_path), range(24), workers=2)
    assert int(next(loaded)) == 0
    loaded.close()  # type: ignore[attr-defined]


class Broken(Numbers):
    def __getitem__(self, key: Any) -> Any:
        raise {1: InputError("the list is bad"), 2: KeyError("x")}[key]


def test_errors_of_the_data_set_are_no_deaths(tmp_path: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(InputError, match="^the list is bad$"):
            list(load(Broken(tmp_path), [1], workers=workers))
        with pytest.raises(KeyError):
            list(load(Broken(tmp_path), [2], workers=workers))


def test_batches_name_their_videos(tmp_path: Path) -> None:
    batches = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]

    class Pairs(Numbers):
        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(key[1])

    found = load(Pairs(tmp_path, {1: 1}), batches, workers=1, collate=torch.stack, say=lambda line: None)
    assert [batch.tolist() for batch in found] == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match=r"2\.mp4, .*3\.mp4"):
        list(load(Pairs(tmp_path, {3: -1}), batches, workers=1, collate=torch.stack, say=lambda line: None))
