"""`m2clip stream`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from m2clip.data.built_in.motion import CLASSES, render_clip
from m2clip.data.built_in.rendered_set import write_clip
from tests.commands.calls import call, one_line
from tests.data.video_files import write_video

MODEL = ("--clip", "tiny", "--labels", "a ring", "a cross")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a ring and four of a cross, written long ago."""
    shows = {one.name: one for one in CLASSES}
    frames = [
        np.resize(render_clip(shows[name], 1), (48, 64, 64, 3)) for name in ("a ring moving left", "a cross growing")
    ]
    path = tmp_path_factory.mktemp("videos") / "film.mp4"
    write_clip(path, np.concatenate(frames))
    os.utime(path, (0, 0))
    return path


def test_a_file_is_told_line_by_line(capfd: pytest.CaptureFixture[str], film: Path) -> None:
    code, out, err = call(capfd, "stream", film, *MODEL, "--window", 1, "--step", 0.5, "--json", "--latency", 600)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["seconds"] for one in found] == pytest.approx(np.arange(1, 8, 0.5).tolist())
    best = [one["predictions"][0]["name"] for one in found]
    # The last second of the ring ends at 4 s; a second of smoothing later the cross has won for sure.
    assert best[:7] == ["a ring"] * 7 and best[-4:] == ["a cross"] * 4
    assert err.startswith(f"m2clip: {film}: 14 results of 96 frames") and err.count("\n") == 1
    code, out, _ = call(capfd, "stream", film, *MODEL, "--latency", 600)
    assert code == 0 and out.splitlines()[0].startswith("    2.00 s  a ring")


def test_a_pipe_ends_with_who_writes_into_it(capfd: pytest.CaptureFixture[str], film: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = write_video(tmp_path / "film.ts", 60).read_bytes()
    writer = threading.Thread(target=lambda: path.write_bytes(data), daemon=True)
    writer.start()
    code, out, err = call(capfd, "stream", path, *MODEL, "--window", 1, "--json", "--latency", 600)
    writer.join(10)
    assert code == 0 and len(out.splitlines()) == 6 and "6 results of 60 frames" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.ts",), "absent.ts: No such file"),
        (("ftp://a/b",), "of addresses only"),
        (("absent.ts", "--clips", 2), "unrecognized arguments: --clips 2"),
        (("absent.ts", "--step", 3), "the step must be above 0 s and at most the window's 2 s"),
        (("absent.ts", "--latency", 0), "'0' is not a time"),
        (("absent.ts", "--smoothing", "soft"), "'soft' is not a time"),
    ],
)
def test_bad_input_is_one_line(capfd: pytest.CaptureFixture[str], words: tuple, said: str) -> None:
    assert said in one_line(call(capfd, "stream", *words, *MODEL))


def test_a_source_that_is_lost(capfd: pytest.CaptureFixture[str], film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2clip.data.video.live import LiveVideo
    from m2clip.errors import LostSourceError

    def ended(self) -> None:
        raise LostSourceError(f"{self.name}: lost: cable pulled")

    monkeypatch.setattr(LiveVideo, "_ended", ended)
    code, out, err = call(capfd, "stream", film, *MODEL, "--latency", 600)
    assert code == 3 and len(out.splitlines()) == 12
    assert err.splitlines()[1:] == [f"m2clip: {film}: lost: cable pulled"] and "12 results" in err


def test_an_interrupt_ends_it_with_a_summary(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)  # so that the pipe does not end
    words = [sys.executable, "-m", "m2clip.cli", "stream", path, *MODEL, "--window", "1", "--latency", "600"]
    data = write_video(tmp_path / "film.ts", 60).read_bytes()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        writer = threading.Thread(target=os.write, args=(held, data), daemon=True)
        writer.start()
        assert " s  a " in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    os.close(held)
    assert child.returncode == 130
    lines = err.splitlines()
    assert len(lines) == 2 and "results of" in lines[0] and lines[1] == "m2clip: interrupted"
