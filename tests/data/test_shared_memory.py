"""Shared memory that is too small, as in many containers: everything comes all the same, and one line says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip.data import loading
from m2clip.data.loading import load
from m2clip.data.shared_memory import Piped, hand_over, take_over
from tests.train.test_survival_loading import Numbers

SIZE = 1 << 20  # of the shared memory, in bytes


class Videos(Numbers):
    """Tensors of nested items, together larger than `SIZE`."""

    def __getitem__(self, key: Any) -> Any:
        return {"video": torch.full((SIZE // 2,), key, dtype=torch.int32), "more": (key, [torch.tensor(key)], "text")}


def check(folder: Path, said: list[str]) -> None:
    for number, item in enumerate(load(Videos(folder), range(6), workers=2, timeout=60, say=said.append)):
        assert item["video"].shape == (SIZE // 2,) and (item["video"] == number).all()
        assert item["more"] == (number, [torch.tensor(number)], "text")


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_said", set())


def no_room(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: No space left on device (28)")


def test_items_come_through_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    said: list[str] = []
    check(tmp_path, said)
    check(tmp_path, said)  # another epoch
    (line,) = said
    assert line.startswith("/dev/shm has no room for 2.0 MiB (") and "through pipes" in line and "--shm-size" in line


def test_a_batch_goes_through_a_pipe_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    piped = hand_over({"video": torch.rand(2, 3), "label": torch.tensor([1, 2]), "replaced": [None, {"path": "a"}]})
    assert isinstance(piped, Piped) and not isinstance(piped.item["video"], torch.Tensor)
    batch = take_over(piped)
    assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == [1, 2]
    batch["video"][0] = 0  # not read-only


def test_without_room_for_locks_one_process_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", full)
    said: list[str] = []
    check(tmp_path, said)
    (line,) = said
    assert "no room for decoding processes" in line and "decoded in this one" in line


REAL = """
import os, sys
from pathlib import Path
from tests.data import test_shared_memory as tests
said = []
tests.check(Path(sys.argv[1]), said)
with open("/dev/shm/full", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
tests.check(Path(sys.argv[1]), said)
print(*said, sep="\\n")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm")
def test_a_small_and_a_full_shared_memory(tmp_path: Path) -> None:
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={SIZE} tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    command = [*mount, sys.executable, "-c", REAL, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pipes, alone = done.stdout.splitlines()
    assert "through pipes" in pipes and "1.0 MiB are free" in pipes and "decoded in this one" in alone
