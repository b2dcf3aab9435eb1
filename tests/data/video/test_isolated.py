"""Whatever a video does to its decoder costs that video a VideoError, and no process outlives its parent."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from m2clip.config import load_config
from m2clip.data.clips import ClipDataset, ClipSettings, collate, load_views
from m2clip.data.lists.annotations import Annotations, VideoItem
from m2clip.data.video import isolated
from m2clip.data.video.isolated import DecoderLimits, DecoderProcess, open_isolated
from m2clip.data.video.readers import VideoError, open_video
from m2clip.errors import InputError
from m2clip.train.setup import clip_settings
from tests.data.video.test_readers import BAD_FILES, image_folder
from tests.data.video_files import read_code, write_video


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "good.mp4")


@pytest.fixture(scope="module")
def process() -> Iterator[DecoderProcess]:
    made = DecoderProcess()
    yield made
    made.close()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    """A process that misbehaves as the name of the file says."""
    monkeypatch.setattr(isolated, "_CHILD", "from tests.data.video.hostile_child import main")
    made = DecoderProcess(DecoderLimits(seconds=1.5))
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An ended process that nobody has asked about is still listed.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for_end(pid: int) -> bool:
    for _ in range(200):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_same_frames_as_in_this_process(good: Path, process: DecoderProcess) -> None:
    with process.open(good) as video, open_video(good) as reference:
        assert (video.path, video.num_frames, video.fps) == (good, reference.num_frames, reference.fps)
        for indices in ([3], [30, 2, 2, 17], range(40)):
            assert torch.equal(video.read(indices), reference.read(indices))
        with pytest.raises(IndexError, match="has frames 0 to 39"):
            video.read([40])


def test_folders_of_images_and_a_lone_frame(tmp_path: Path, process: DecoderProcess) -> None:
    folder = image_folder(tmp_path / "clip", 5)
    with process.open(folder, "frames", pattern="img_{:05d}.jpg", num_frames=4) as video:
        assert video.num_frames == 4
        assert math.isnan(video.fps)
        assert [read_code(frame) for frame in video.read([3, 0])] == [3, 0]


def test_one_process_for_many_videos(good: Path, process: DecoderProcess, tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mp4", num_frames=5)
    pids = set()
    with process.open(good) as first, process.open(other) as second:
        # Read in turn, each finds its own file again.
        for index in range(3):
            assert read_code(first.read([index + 20])[0]) == index + 20
            assert read_code(second.read([index])[0]) == index
            pids.add(process.pid)
    assert len(pids) == 1


@pytest.mark.parametrize("name", ["missing", "empty", "html", "truncated", "audio_only", "timeless", "folder"])
def test_bad_files_have_the_same_message_and_leave_the_process_in_place(
    tmp_path: Path, process: DecoderProcess, name: str
) -> None:
    path = BAD_FILES[name][0](tmp_path / "bad.mp4")
    with pytest.raises(VideoError) as plain:
        open_video(path)
    before = process.pid
    with pytest.raises(VideoError) as caught:
        process.open(path)
    assert str(caught.value) == str(plain.value)
    assert process.pid == before or before is None


def test_unknown_reader_and_impossible_limits(good: Path) -> None:
    with pytest.raises(InputError, match="unknown video reader 'opencv'"):
        open_isolated(good, "opencv")
    with pytest.raises(InputError, match="seconds for one video must be above 0"):
        DecoderLimits(seconds=0)


@pytest.mark.parametrize("when", ["", "read_"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"crashed the decoder \(SIGSEGV\)"),
        ("abort", r"crashed the decoder \(SIGABRT\)"),
        ("exit", r"crashed the decoder \(exit code 3\)"),
        ("hang", "was not decoded within 1.5 seconds"),
        ("bloat", "cannot be decoded: MemoryError"),
        ("type_error", "cannot be decoded: TypeError: a decoder's binding fell over"),
    ],
)
def test_a_hostile_video_costs_only_itself(
    good: Path, hostile: DecoderProcess, when: str, how: str, message: str
) -> None:
    path = Path("some") / f"{when}{how}.bad"
    with hostile.open(good) as survivor:
        first = hostile.pid
        with pytest.raises(VideoError, match=message) as caught, hostile.open(path) as video:
            video.read([0])
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert read_code(survivor.read([7])[0]) == 7
    replaced = how not in ("bloat", "type_error")
    assert (hostile.pid != first) == replaced
    assert first is not None
    assert alive(first) != replaced


def test_what_a_decoder_prints_does_not_mix_with_the_frames(good: Path, hostile: DecoderProcess) -> None:
    with hostile.open("print.bad") as video:
        assert video.num_frames == 8
    with hostile.open(good) as video:
        assert read_code(video.read([9])[0]) == 9


def test_a_process_that_is_killed_between_two_videos_costs_none(good: Path, process: DecoderProcess) -> None:
    with process.open(good) as video:
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # All threads of the child must be gone, else it dies while the next frame is decoded.
        process._child.wait()
        assert read_code(video.read([11])[0]) == 11


def test_killed_while_decoding(hostile: DecoderProcess) -> None:
    with hostile.open("read_sleep.bad") as video:
        assert hostile.pid is not None
        threading.Timer(0.3, os.kill, (hostile.pid, signal.SIGKILL)).start()
        with pytest.raises(VideoError, match="was killed, probably because memory ran out"):
            video.read([0])


def test_memory_of_a_video_is_limited(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", num_frames=2, size=(1920, 1088))
    small = DecoderProcess(DecoderLimits(memory=8 << 20))
    with pytest.raises(VideoError, match=r"large\.mp4"), small.open(path, "pyav") as video:
        video.read([0, 1])
    small.close()


def test_a_child_that_is_late_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = """
        import os, threading
        from m2clip.data.video import isolated
        isolated._CHILD = "from tests.data.video.hostile_child import main"
        process = isolated.DecoderProcess(isolated.DecoderLimits(seconds=1))
        video = process.open("read_hang.bad")
        print(process.pid, flush=True)
        threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()
        video.read([0])
    """
    parent = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert parent.returncode == -signal.SIGKILL
    assert wait_for_end(int(parent.stdout))


def test_an_idle_child_ends_with_its_parent(good: Path) -> None:
    code = f"""
        import os, sys
        from m2clip.data.video import isolated
        video = isolated.open_isolated({str(good)!r})
        print(isolated._own.process.pid, flush=True)
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), 9)
    """
    for how in ("killed", "regular"):
        parent = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), how], capture_output=True, text=True, timeout=120
        )
        assert parent.stderr == ""
        assert wait_for_end(int(parent.stdout))


def test_clips_of_isolated_videos(good: Path, tmp_path: Path) -> None:
    settings = ClipSettings(num_frames=4, size=32, isolate=True)
    plain = ClipSettings(num_frames=4, size=32)
    assert torch.equal(load_views(good, settings), load_views(good, plain))
    (tmp_path / "bad.mp4").write_bytes(b"hello " * 99)
    items = tuple(VideoItem(path, 0) for path in (good, tmp_path / "bad.mp4", good))
    dataset = ClipDataset(Annotations(items, None, "list", tmp_path), settings)
    # The child of this process is open here; the worker, which is forked from it, must have one of its own.
    (batch,) = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=collate)
    assert [error is None for error in batch["errors"]] == [True, False, True]
    assert torch.equal(batch["video"][0], load_views(good, plain))
    assert torch.equal(load_views(good, settings), load_views(good, plain))


def test_times_of_many_frames(good: Path, process: DecoderProcess) -> None:
    with process.open(good) as video, open_video(good) as reference:
        assert video.seconds(range(40)) == reference.seconds(range(40))
        assert len(video.seconds([3] * 200_000) or []) == 200_000


def test_many_frames_have_more_time_than_a_few(good: Path, process: DecoderProcess) -> None:
    later: list[bool] = []
    with process.open(good) as video:
        for number, _ in enumerate(video.each(range(40))):
            if number % 8 == 6:
                process._deadline += 1000
            later.append(process._deadline > time.monotonic() + process.limits.seconds + 1)
    # The 8th frame and each 8th after it make a new deadline of what was given for those before.
    assert later == [number % 8 in (6, 7) for number in range(40)]


def test_a_run_is_isolated_by_its_configuration() -> None:
    shape: Any = SimpleNamespace(image_size=(32, 32), num_frames=8)
    assert not clip_settings(load_config(), shape).isolate
    assert clip_settings(load_config(None, ["data.isolate=true"]), shape).isolate


def test_each_thread_has_its_own_process(good: Path) -> None:
    pids: list[int] = []

    def read() -> None:
        with open_isolated(good) as video:
            video.read([1])
        pids.append(isolated._own.process.pid)

    read()
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert len(set(pids)) == 2
    assert alive(pids[0])
    assert wait_for_end(pids[1])
