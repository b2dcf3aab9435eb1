"""Commands whose output is on a full disk; started by `tests.test_full_disk` where a small disk is mounted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m2clip import cli
from tests.fake_model import random_tiny_clip

NAMES = ["juggling", "riding a horse", "cooking"]


def commands(given: Path, disk: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes, by a name, with its output on the disk; `old` holds what earlier calls wrote."""
    listed, classes, old = given / "list.txt", given / "classes.csv", disk / "old"
    train = ("--config", given / "run.yaml", "--device", "cpu")
    return {
        "check": ("check", listed, "--classes", classes, "--output", disk / "check"),
        "check again": ("check", listed, "--classes", classes, "--output", old),
        "convert": ("convert", given / "run", disk / "authors.pth", "--to", "authors"),
        "describe": ("describe", disk / "sentences.json", "--classes", "k400"),
        "pack": ("pack", listed, disk / "pack", "--workers", "1"),
        "label": ("label", listed, disk / "label", "--run", given / "run", "--workers", "0"),
        "features": ("features", listed, disk / "features", "--run", given / "run", "--workers", "0"),
        "eval": ("eval", given / "run", "--list", listed, "--output", disk / "eval", "--workers", "0"),
        "eval again": ("eval", given / "run", "--list", listed, "--output", old, "--workers", "0"),
        "predict": ("predict", given / "0.mp4", "--run", given / "run", "--filmstrip", disk / "strip.png"),
        "episodes": ("episodes", "list", "--list", listed, "--classes", classes, "--way", 2, "--shots", 1)
        + ("--episodes", 500, "--output", disk / "episodes.jsonl"),
        "demo": ("demo", "--output", disk / "demo"),
        "train": ("train", *train, "--output", disk / "run"),
        "train again": ("train", *train, "--output", disk / "empty"),
    }


def fill(disk: Path, leave: int) -> None:
    """Fill the disk but for some bytes."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with (disk / "ballast").open("r+b") as file:
        file.truncate(max(file.seek(0, os.SEEK_END) - leave, 0))


def call(words: tuple[object, ...]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, error.getvalue()


def main(given: Path, disk: Path) -> None:
    """Run all commands: with no room, with a little, and on a read-only disk; prints what each ended with as JSON."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("m2clip.towers.tiny.tiny_clip", random_tiny_clip)
    (disk / "empty").mkdir()
    (disk / "old").mkdir()
    (disk / "old" / "file").write_text("old")
    found = []

    def tell(name: str, words: tuple[object, ...], reason: str) -> None:
        code, error = call(words)
        kept = (disk / "old" / "file").read_text() == "old"
        found.append([name, reason, code, error, kept, [str(path) for path in disk.rglob("*.partial")]])

    for leave, names in ((0, None), (12 << 10, ("check again", "pack", "label", "features", "train"))):
        for name, words in commands(given, disk).items():
            if names is None or name in names:
                fill(disk, leave)
                tell(f"{name}, {leave} bytes left", words, "No space left on device")
                (disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for name, words in commands(given, disk).items():
        if not name.startswith("eval"):  # which then prints its table without writing files
            tell(f"{name}, read-only", words, "Read-only file system")
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
