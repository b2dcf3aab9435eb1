"""What the tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import m2clip
from tests.commands.calls import NAMES
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.towers.tiny.tiny_clip", random_tiny_clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, one of them unreadable, with lists, class files and a run folder."""
    folder = tmp_path_factory.mktemp("cli")
    for number in range(5):
        write_video(folder / "videos" / f"{number}.mp4", num_frames=6 + number, size=(96 - 4 * number, 64))
    (folder / "videos" / "5.mp4").write_text("<!DOCTYPE html><html>404</html>")
    lines = [f"videos/{number}.mp4 {label}" for number, label in enumerate((0, 1, 2, 3, 4, 0))]
    (folder / "val.txt").write_text("\n".join(lines) + "\n")
    (folder / "classes.csv").write_text("id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(NAMES)))
    (folder / "others.csv").write_text("id,name\n" + "".join(f"{i},action {i}\n" for i in range(6)))
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", random_tiny_clip(), class_names=NAMES, num_frames=4, width=8)
    m2clip.save_adapters(model, folder / "run")
    return folder
