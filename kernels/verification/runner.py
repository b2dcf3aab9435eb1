"""Runs verifications in processes of their own, within a time.

A kernel that reads beyond its memory or waits for ever takes only such a process along, which is replaced for the keys
that are left. Several work at once, each on one key at a time: nearly all of the time is compilation, which fills
Triton's cache on disk for the process that asks as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import store
from .keys import Key
from .store import Verdict

SECONDS = "M2CLIP_VERIFY_SECONDS"
DEFAULT_SECONDS = 60.0
HANG_SECONDS = 10.0  # for kernels on small inputs, once they are compiled and launched
MOST_PROCESSES = 8
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}


def allowed_seconds() -> float:
    """What $M2CLIP_VERIFY_SECONDS says, else 60; also where it says no number."""
    try:
        return max(0.0, float(os.environ.get(SECONDS, DEFAULT_SECONDS)))
    except ValueError:
        return DEFAULT_SECONDS


def verify(
    keys: Sequence[Key],
    index: int,
    end: float,
    found: Callable[[Key, Verdict], None],
    command: Sequence[str] = (),
) -> None:
    """Verify keys on a device, and tell of each as soon as it is known.

    Args:
        keys: all of one device.
        index: number of the GPU.
        end: time.monotonic() at which everything is stopped; keys without an answer by then get one that does not last.
        found: called with every key once.
        command: what is run, by default this package's `__main__`.
    """
    waiting = deque(keys)
    count = min(len(keys), MOST_PROCESSES, max(1, len(os.sched_getaffinity(0))))
    processes: list[_Process] = []
    refused = ""  # why no process can be started
    try:
        with selectors.DefaultSelector() as selector:
            while (waiting and not refused) or any(process.key for process in processes):
                if time.monotonic() >= end:
                    break
                while len(processes) < min(count, len(waiting) + len(processes)) and not refused:
                    try:
                        processes.append(_Process(command or _command(), index))
                    except OSError as error:
                        refused = f"no process can be started ({' '.join(str(error).split())})"
                        break
                    selector.register(processes[-1].output, selectors.EVENT_READ, processes[-1])
                for process in processes:
                    if process.key is None and process.ready and waiting:
                        process.ask(waiting.popleft())
                limit = min([end, *(process.limit for process in processes)])
                for event, _ in selector.select(max(0.0, limit - time.monotonic())):
                    event.data.hear()
                for process in [one for one in processes if one.finished]:
                    key, verdict = process.key, process.verdict()
                    process.key = None
                    if process.ended:
                        selector.unregister(process.output)
                        process.kill()
                        processes.remove(process)
                        if not process.ready:
                            refused = verdict.message
                    if key is not None:
                        found(key, verdict)
    finally:
        left = [process.key for process in processes if process.key is not None]
        for process in processes:
            process.kill()
    late = f"there was no answer within the {allowed_seconds():g} s of ${SECONDS}"
    for key in [*left, *waiting]:
        found(key, Verdict(False, 0.0, refused or late, store.now(), lasting=False))


def _command() -> list[str]:
    return [sys.executable or "python", "-m", __package__]


class _Process:
    """A process that answers questions: a key on its standard input, lines of JSON on its standard output."""

    def __init__(self, command: Sequence[str], index: int) -> None:
        root = str(Path(sys.modules[__package__.partition(".")[0]].__file__ or "").parent.parent)
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._index, self._errors = index, tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # so that the compilers it has started end with it
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.output, self._input = self._process.stdout, self._process.stdin
        self.key: Key | None = None
        self.ready = self.ended = False
        self._answer: dict[str, Any] | None = None
        self._text, self._waits_since = b"", float("inf")

    def ask(self, key: Key) -> None:
        self.key, self._answer = key, None
        question = {"key": key.record(), "index": self._index}
        with contextlib.suppress(OSError):  # it has ended, which its output tells
            self._input.write(json.dumps(question).encode() + b"\n")
            self._input.flush()

    def hear(self) -> None:
        """Take what it has said since."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            self.ended = True
            return
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ready" in said:
                self.ready = True
            elif "waits" in said:
                self._waits_since = time.monotonic() if said["waits"] else float("inf")
            else:
                self._answer = said
                self.ended |= said["broken"]  # its GPU may not answer any more

    @property
    def limit(self) -> float:
        """When it counts as hanging."""
        return self._waits_since + HANG_SECONDS

    @property
    def finished(self) -> bool:
        self.ended |= time.monotonic() >= self.limit
        return self.ended or (self.key is not None and self._answer is not None)

    def verdict(self) -> Verdict:
        """Of the key, once it is finished."""
        if self._answer is not None:
            fields = ("passed", "error", "message", "lasting")
            passed, error, message, lasting = (self._answer[name] for name in fields)
            return Verdict(passed, error, message, store.now(), lasting)
        if time.monotonic() >= self.limit:
            return Verdict(False, 0.0, f"it did not end within {HANG_SECONDS:g} s", store.now())
        code = self._process.wait()
        if code < 0:
            crash = -code in _CRASHES
            return Verdict(False, 0.0, f"it ended with {signal.Signals(-code).name}", store.now(), lasting=crash)
        return Verdict(False, 0.0, self._last_words() or f"its process ended with code {code}", store.now(), False)

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self.output, self._input, self._errors):
            with contextlib.suppress(OSError):
                stream.close()
