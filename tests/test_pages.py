"""The snippets of pages for users do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import m2clip
from m2clip.cli import build_parser, main
from m2clip.data.built_in.motion import CLASSES, render_clip
from m2clip.data.built_in.rendered_set import write_clip

PAGE = (Path(__file__).parent.parent / "docs" / "long_videos.md").read_text(encoding="utf-8")
NAMES = ["a ring", "a cross"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets name: runs, videos, lists."""
    folder = tmp_path_factory.mktemp("page")
    model = m2clip.create_model("msta", m2clip.load_clip("tiny"), class_names=NAMES, num_frames=8)
    m2clip.save_adapters(model, folder / "runs/k400")
    shows = {one.name: one for one in CLASSES}
    frames = np.concatenate(
        [np.resize(render_clip(shows[name], 1), (120, 64, 64, 3)) for name in ("a ring moving left", "a cross growing")]
    )
    (folder / "videos").mkdir()
    for name, part in (("long.mp4", frames), ("videos/v_x.mp4", frames), ("clip.mp4", frames[:12])):
        write_clip(folder / name, part)
    true = [{"segment": [0, 10], "label": "a ring"}, {"segment": [10, 20], "label": "a cross"}]
    (folder / "true.json").write_text(json.dumps({"database": {"x": {"subset": "validation", "annotations": true}}}))
    (folder / "recording.ts").write_bytes((folder / "long.mp4").read_bytes())
    os.utime(folder / "recording.ts", (0, 0))
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    yield folder


def test_the_python_of_the_page_runs(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, scope)
    out = capsys.readouterr().out
    found = re.findall(r"([\d.]+) s to ([\d.]+) s: (.*)", out)
    assert [name for _, _, name in found] == NAMES
    assert abs(float(found[0][1]) - 10) <= 1 and found[1][1] == "20.0"
    assert scope["found"].label == "a ring" and len(scope["several"]) == 2
    assert scope["similarity"].shape == (1, 2)
    assert Path("long.png").is_file()


def commands() -> list[str]:
    blocks = re.findall(r"(?:^|\n)\n```\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.rpartition("| ")[2] for block in blocks for line in block.splitlines()]
    assert len(lines) == 7
    return lines


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_page_run(inside: Path, capfd: pytest.CaptureFixture[str], line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "m2clip"
    build_parser().parse_args(words)
    if words[0] == "stream" and words[1] != "recording.ts":
        return  # a camera, an address, and what another program writes
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "100.00" in out if words[0] == "eval" else "a ring" in out and "a cross" in out
