"""Verification in processes of their own, for real: kernels that are right, wrong, slow, that crash and that hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m2clip.kernels.verification import runner, store
from m2clip.kernels.verification.keys import Call, Key
from m2clip.kernels.verification.store import Verdict

from .stand_in import call, key, needs_extension

pytestmark = needs_extension
TED = call("ted_adapter", "both", 24, 8)
BOTTLENECK = call("bottleneck_adapter", "relu", 24, 8)
LOSS = call("cosine_cross_entropy", "few", 24)


def verdicts(calls: list[Call], command: list[str] = (), seconds: float = 60.0) -> dict[Call, Verdict]:  # type: ignore[assignment]
    found: dict[Key, Verdict] = {}
    keys = [key(one) for one in calls]

    def note(one: Key, verdict: Verdict) -> None:
        assert one not in found
        found[one] = verdict

    runner.verify(keys, 0, time.monotonic() + seconds, note, command)
    assert set(found) == set(keys)
    return {one.call: verdict for one, verdict in found.items()}


def planted(folder: Path, fault: str) -> list[str]:
    """The command of a process in which ted_adapter's native kernel has a fault."""
    path = folder / "planted.py"
    path.write_text(
        "import ctypes, os, sys, time, torch\n"
        "from m2clip.kernels.native import ted\n"
        "from m2clip.kernels.verification import worker\n"
        "forward, answer = ted.forward, worker.answer\n"
        f"{fault}\n"
        "worker.main()\n"
    )
    return [sys.executable, str(path)]


def test_right_kernels_pass_in_every_dtype_and_layout():
    calls = [
        TED,
        call("ted_adapter", "shared no-class-token", 24, 8),
        call("ted_adapter", "temporal patches-only", 24, 8)._replace(dtype=torch.bfloat16),
        call("ted_adapter", "difference long", 24, 8),
        call("ted_adapter", "both sequential autocast", 24, 8)._replace(dtype=torch.bfloat16),
        BOTTLENECK,
        call("bottleneck_adapter", "quick_gelu branch", 24, 8),
        call("msta_adapter", "grouped", 24, 8),
        call("msta_adapter", "after-up joint", 24, 8)._replace(dtype=torch.bfloat16),
        call("msta_adapter", "text", 24, 8),
        LOSS,
        call("soft_target_kl", "few", 24),
    ]
    for one, verdict in verdicts(calls).items():
        assert verdict.passed and verdict.lasting and 0 < verdict.error <= 3, (one, verdict)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "ted.forward = lambda *a, **k: [part * 1.001 for part in forward(*a, **k)]",
            "x PyTorch's, allowed 2x",
        ),
        ("ted.forward = lambda *a, **k: [part * float('nan') for part in forward(*a, **k)]", "error nanx PyTorch's"),
        (
            "ted.forward = lambda *a, **k: [part + 1e-9 * torch.randn_like(part) for part in forward(*a, **k)]",
            "two runs differ",
        ),
    ],
)
def test_wrong_numbers_are_named_and_last(tmp_path, fault, words):
    found = verdicts([TED, BOTTLENECK], planted(tmp_path, fault))
    assert not found[TED].passed and found[TED].lasting
    assert re.search(words, found[TED].message), found[TED].message
    assert found[BOTTLENECK].passed


@pytest.mark.parametrize(
    ("fault", "message", "lasting"),
    [
        ("ted.forward = lambda *a, **k: ctypes.string_at(0)", "it ended with SIGSEGV", True),
        ("ted.forward = lambda *a, **k: os.abort()", "it ended with SIGABRT", True),
        # The memory of a machine is no property of a kernel.
        ("ted.forward = lambda *a, **k: os.kill(os.getpid(), 9)", "it ended with SIGKILL", False),
        ("ted.forward = lambda *a, **k: 1 / 0", "it raised ZeroDivisionError: division by zero", False),
        (
            "def no(*a, **k): raise torch.OutOfMemoryError()\nted.forward = no",
            "there was no memory to verify it",
            False,
        ),
    ],
)
def test_a_crash_takes_nothing_along(tmp_path, monkeypatch, fault, message, lasting):
    monkeypatch.setattr(runner, "MOST_PROCESSES", 1)
    found = verdicts([LOSS, TED, BOTTLENECK], planted(tmp_path, fault))
    assert found[LOSS].passed and found[BOTTLENECK].passed
    assert found[TED][:3] == (False, 0.0, message) and found[TED].lasting == lasting


def test_a_kernel_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "HANG_SECONDS", 1.0)
    fault = (
        "def hang(key, index, waits):\n"
        "    if key.call.op == 'ted_adapter':\n"
        "        waits(True), time.sleep(1000)\n"
        "    return answer(key, index, waits)\n"
        "worker.answer = hang"
    )
    found = verdicts([TED, BOTTLENECK, LOSS], planted(tmp_path, fault))
    assert found[TED].message == "it did not end within 1 s" and found[TED].lasting
    assert found[BOTTLENECK].passed and found[LOSS].passed


def test_past_the_time_there_is_no_answer_and_it_does_not_last(tmp_path, monkeypatch):
    monkeypatch.setenv(runner.SECONDS, "7")
    begin = time.monotonic()
    found = verdicts([TED, BOTTLENECK], planted(tmp_path, "ted.forward = lambda *a, **k: time.sleep(1000)"), 7.0)
    assert found[TED].message == "there was no answer within the 7 s of $M2CLIP_VERIFY_SECONDS"
    assert not found[TED].lasting and time.monotonic() - begin < 60
    assert [runner.allowed_seconds(), verdicts([TED], seconds=0.0)[TED].lasting] == [7.0, False]


def test_a_number_that_is_none_leaves_the_default(monkeypatch):
    for text in ("soon", ""):
        monkeypatch.setenv(runner.SECONDS, text)
        assert runner.allowed_seconds() == 60


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/no/such/python"], "no process can be started"),
        ([sys.executable, "-c", "raise SystemExit('no GPU for a second process')"], "no GPU for a second process"),
    ],
)
def test_where_no_process_starts_nothing_is_verified(command, words):
    found = verdicts([TED, BOTTLENECK, LOSS], command)
    for verdict in found.values():
        assert words in verdict.message and not verdict.passed and not verdict.lasting


def test_a_process_that_finds_another_installation_says_so(tmp_path):
    found = verdicts([TED], planted(tmp_path, "worker.software = lambda *_: None"))
    assert "another installation" in found[TED].message and not found[TED].lasting


def test_what_verifies_ends_with_the_process_that_asks(tmp_path):
    fault = "open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\nted.forward = lambda *a, **k: time.sleep(1000)"
    command = planted(tmp_path, fault)
    code = (
        "import time\nfrom m2clip.kernels.verification import runner\n"
        "from tests.kernels.verification.stand_in import call, key\n"
        f"runner.verify([key(call('ted_adapter', 'both', 24, 8))], 0, time.monotonic() + 600, print, {command!r})"
    )
    asking = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    note = tmp_path / "planted.py.pid"
    try:
        wait_for(lambda: note.exists() and note.read_text())
        number = int(note.read_text())
        asking.send_signal(signal.SIGKILL)
        asking.wait()
        wait_for(lambda: not alive(number))
    finally:
        asking.kill()


def test_two_processes_verify_once(cpu):
    code = (
        "from m2clip.kernels import dispatch\n"
        "from m2clip.kernels.verification import choices\n"
        "from tests.kernels.verification.stand_in import CPU, call\n"
        "dispatch.VERIFIED = {'cpu': ('native',)}\n"
        "print(choices.settle([call('bottleneck_adapter', 'gelu', 24, 8)], CPU, dispatch.able))"
    )
    root = Path(__file__).parents[3]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=root, **pipes) for _ in range(2)]
    said = [run.communicate() for run in runs]
    assert all("backend='native'" in out for out, _ in said)
    told = [err for _, err in said if "1 kernel verified on cpu in" in err]
    assert len(told) == 1 and f"(kept in {cpu})" in told[0]
    assert len(list(cpu.glob("*.json"))) == 1
    assert [verdict.passed for verdict in store.all_known().values()] == [True]


def wait_for(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
