"""A disk that is really full or read-only: every writing command ends in one line, and what was there before stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import m2clip
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip
from tests.full_disk import NAMES

MOUNT = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_every_command_that_writes(tmp_path: Path) -> None:
    given, disk = tmp_path / "given", tmp_path / "disk"
    disk.mkdir()
    for number in range(6):
        write_video(given / f"{number}.mp4", num_frames=4, size=(64, 48))
    (given / "list.txt").write_text("".join(f"{number}.mp4 {number % 3}\n" for number in range(6)))
    (given / "classes.csv").write_text("id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(NAMES)))
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", random_tiny_clip(), class_names=NAMES, num_frames=2, width=8)
    m2clip.save_adapters(model, given / "run")
    (given / "run.yaml").write_text(
        f"model: {{clip: tiny, options: {{width: 8}}}}\noptim: {{epochs: 1, warmup_epochs: 0, batch_size: 2}}\n"
        f"data: {{train: {given / 'list.txt'}, classes: {given / 'classes.csv'}, num_frames: 2, workers: 0}}\n"
    )
    mounted = ["unshare", "-m", "sh", "-c", MOUNT, str(disk)]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    command = [*mounted, sys.executable, "-m", "tests.full_disk", str(given), str(disk)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, reason, code, error, kept, left in json.loads(done.stdout.splitlines()[-1]):
        lines = [line for line in error.splitlines() if reason in line]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("m2clip: "), f"{name}: {code} {error}"
        assert "Traceback" not in error and kept and not left, f"{name}: {error} {left}"
