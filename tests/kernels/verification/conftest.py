"""A device whose kernels are verified and that every machine has: the CPU with its compiled backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from m2clip.kernels import dispatch, records
from m2clip.kernels.verification import choices, runner, store
from m2clip.kernels.verification.keys import Key
from m2clip.kernels.verification.store import Verdict


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The CPU as a device whose kernels are verified; gives the folder where that is kept."""
    monkeypatch.setenv(store.FOLDER, str(tmp_path / "verified"))
    monkeypatch.setattr(dispatch, "VERIFIED", {"cpu": ("native",)})
    monkeypatch.setattr(records, "_told", set())
    choices.forget()
    yield tmp_path / "verified"
    choices.forget()


class Judge:
    """Takes the place of the processes that verify: says what it was told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Key] = []
        self.wrong: set[str] = set()  # operations

    def __call__(self, keys, index, end, found, command=()) -> None:
        for key in keys:
            self.asked.append(key)
            wrong = key.call.op in self.wrong
            found(key, Verdict(not wrong, 3.1 if wrong else 0.5, "output: error 3.1x PyTorch's" if wrong else "", 1.0))


@pytest.fixture
def judge(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    made = Judge()
    monkeypatch.setattr(runner, "verify", made)
    return made
