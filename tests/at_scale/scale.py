"""A list of small videos, some of them broken, and jobs over it that end by kill -9 wherever a test wants them to."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import m2clip
from m2clip import at_scale
from m2clip.at_scale import JobSettings, LocalProcess
from m2clip.data.clips import ClipSettings
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip

NAMES = ["juggling", "riding a horse", "cooking", "running"]
BROKEN = (3, 11)
VIDEOS = 13
FRAMES = 2
# Three videos share a forward pass, so that parts of 4 begin and end within one.
SETTINGS = JobSettings(shard_size=4, batch_size=3)


def write_list(folder: Path) -> Path:
    """Thirteen videos, two of them broken, and the list of their paths."""
    for number in range(VIDEOS):
        path = folder / "videos" / f"{number:02d}.mp4"
        if number in BROKEN:
            path.write_text("<!DOCTYPE html><html>404</html>" if number == BROKEN[0] else "")
        else:
            write_video(path, num_frames=3 + number, size=(96 - 4 * (number % 5), 64))
    listed = folder / "list.txt"
    listed.write_text("".join(f"videos/{number:02d}.mp4\n" for number in range(VIDEOS)))
    return listed


@cache
def build_model() -> Any:
    return m2clip.create_model("clip", random_tiny_clip(), class_names=NAMES, num_frames=FRAMES)


def run(task: str, listed: Path, output: Path, executor: Any = None, **more: Any) -> Any:
    """One job, decoded in the process itself."""
    torch.set_num_threads(1)  # results are equal to the bit for an equal number of threads
    start = {"label": at_scale.label, "features": at_scale.features}[task]
    arguments = {"settings": SETTINGS, "executor": executor or LocalProcess(workers=0, device="cpu"), **more}
    arguments.setdefault("views", ClipSettings(num_frames=FRAMES, size=48))
    return start(build_model(), at_scale.read_videos(listed), output, **arguments)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(moment: str, parts: int) -> None:
    """Have this process killed when it has stored so many parts: "before" the next, "during" or "after" its writing."""
    from m2clip.at_scale import folder

    stored, write, replacing = [0], folder.JobFolder.write, folder.replacing

    def die_at(self: Any, number: int, outcomes: Any) -> None:
        if stored[0] == parts and moment == "before":
            die()
        write(self, number, outcomes)
        if stored[0] == parts:
            die()
        stored[0] += 1

    class Half:
        """In place of `replacing`: half of the file is written, and then comes the end."""

        def __init__(self, path: Path) -> None:
            self.inner = replacing(path)

        def __enter__(self) -> Path:
            self.path = self.inner.__enter__()
            return self.path

        def __exit__(self, *error: Any) -> None:
            if stored[0] == parts and moment == "during" and self.path.parent.name == "parts":
                content = self.path.read_bytes()
                self.path.write_bytes(content[: len(content) // 2])
                die()
            self.inner.__exit__(*error)

    folder.JobFolder.write, folder.replacing = die_at, Half  # type: ignore[method-assign,assignment]


def in_process(
    work: Callable[[], Any], environment: dict[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """A forked process that does the work."""

    def start() -> None:
        os.environ.update(environment or {})
        work()

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    return process


def killed(work: Callable[[], Any], moment: str, parts: int) -> None:
    """Do the work in a process of its own, which must be killed in the midst of it."""

    def start() -> None:
        dying(moment, parts)
        work()

    process = in_process(start)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    """All that a finished job has written, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".claims"
    }


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_complete(folder: Path, name: str = "labels.csv") -> None:
    """Every video once, in order; the broken ones with a reason; nothing is left of killed processes."""
    rows = table(folder, name)
    assert [Path(row["path"]).name for row in rows] == [f"{number:02d}.mp4" for number in range(VIDEOS)]
    assert [number for number, row in enumerate(rows) if row["error"]] == list(BROKEN)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"] and manifest["videos"] == VIDEOS
    assert [failure["index"] for failure in manifest["failures"]] == list(BROKEN)
    assert sorted(path.name for path in (folder / "parts").glob("[!.]*")) == manifest["parts"]
