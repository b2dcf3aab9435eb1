"""Videos in memory: what is read from files, and what is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

import m2clip
from m2clip.data.memory import FrameArray, checked_frames, shown_at
from m2clip.errors import InputError
from tests.data.video_files import irregular_times, read_code, write_video

NUMBERS = list(range(20))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", num_frames=20)


def shown(frames: torch.Tensor) -> list[int]:
    return [read_code(frame) for frame in frames.permute(0, 3, 1, 2)]


def test_load_video_gives_frames_and_times(video: Path) -> None:
    frames, seconds = m2clip.load_video(video)
    assert frames.shape == (20, 64, 96, 3) and frames.dtype == torch.uint8
    assert shown(frames) == NUMBERS
    assert seconds.tolist() == pytest.approx([number / 25 for number in NUMBERS])


def test_load_video_reads_bytes_and_open_files(video: Path) -> None:
    expected = m2clip.load_video(video).frames
    for source in (video.read_bytes(), io.BytesIO(video.read_bytes()), bytearray(video.read_bytes())):
        assert torch.equal(m2clip.load_video(source).frames, expected)
    with video.open("rb") as file:
        assert torch.equal(m2clip.load_video(file).frames, expected)


def test_load_video_reads_a_part(video: Path) -> None:
    frames, seconds = m2clip.load_video(video, start=0.2, end=0.4)
    assert shown(frames) == [5, 6, 7, 8, 9]
    assert seconds[0] == pytest.approx(0.2)


def test_load_video_reads_at_another_rate(video: Path) -> None:
    # Frame i is shown from i / 25 s on: at 0, 0.1, 0.2 ... s that is frame 0, 2, 5, 7, 10, 12, 15, 17.
    frames, seconds = m2clip.load_video(video, fps=10)
    assert shown(frames) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert seconds.tolist() == pytest.approx([number / 10 for number in range(8)])
    assert shown(m2clip.load_video(video, start=0.5, end=0.58, fps=50).frames) == [12, 13, 13, 14]


def test_load_video_takes_the_times_of_a_variable_rate(tmp_path: Path) -> None:
    times = irregular_times(10)
    frames, seconds = m2clip.load_video(write_video(tmp_path / "variable.mp4", 10, times=times))
    assert seconds.tolist() == pytest.approx([time / 100 for time in times], abs=1e-3)
    assert shown(frames) == list(range(10))


def test_a_moment_shows_the_last_frame_whose_time_has_come() -> None:
    times = np.array([0.0, 0.1, 0.4, 0.5])
    assert shown_at(times, np.array([-1.0, 0.0, 0.09, 0.1, 0.39, 0.4, 9.0])).tolist() == [0, 0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"start": 5.0}, "no frame from 5 s to its end; it lasts 0.76 s"),
        ({"start": 0.2, "end": 0.1}, "no frame from 0.2 s to 0.1 s"),
        ({"fps": 0}, "fps must be above 0"),
        ({"reader": "film"}, "unknown video reader"),
    ],
)
def test_impossible_parts_are_refused(video: Path, named: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        m2clip.load_video(video, **named)


def test_messages_name_what_was_given(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html>404</html>"
    with pytest.raises(InputError, match="^bytes: a web page"):
        m2clip.load_video(page)
    (tmp_path / "page.mp4").write_bytes(page)
    with (tmp_path / "page.mp4").open("rb") as file, pytest.raises(InputError, match=r"page\.mp4: a web page"):
        m2clip.load_video(file)
    with (tmp_path / "page.mp4").open() as file, pytest.raises(InputError, match="open as text"):
        m2clip.load_video(file)
    with pytest.raises(InputError, match="not NoneType"):
        m2clip.load_video(None)


FRAMES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (FRAMES.transpose(0, 3, 1, 2), r"must be \(T, H, W, 3\), not \(4, 3, 8, 8\): use permute"),
        (FRAMES[0], "not .8, 8, 3.: that is one frame"),
        (FRAMES[None], "several videos are given as a list"),
        (FRAMES[:0], "empty"),
        (FRAMES[:, :0], "empty"),
        (FRAMES.astype(np.int64), "not int64"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.int32), "not int32"),
        (FRAMES.astype(bool), "not bool"),
        (FRAMES.astype(object), "not object"),
        (FRAMES + 200.0, r"must be in 0 ... 1, not 200 ... 200: give uint8"),
        (FRAMES - 0.5, "not -0.5"),
        (torch.full((4, 8, 8, 3), float("nan")), "not nan"),
    ],
)
def test_frames_that_are_none_are_refused(frames: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        checked_frames(frames)
    assert "\n" not in str(caught.value)


def test_floats_become_bytes() -> None:
    floats = np.array([0.0, 0.5, 1.0], np.float32).reshape(1, 1, 1, 3)
    assert checked_frames(floats).flatten().tolist() == [0, 128, 255]
    assert checked_frames(torch.from_numpy(floats).double()).flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: x[..., ::-1], lambda x: np.broadcast_to(x, x.shape)])
def test_arrays_that_torch_cannot_share_are_copied(change) -> None:
    frames = change(np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))
    assert np.array_equal(checked_frames(frames).numpy(), frames)


def test_times_that_do_not_fit_are_refused() -> None:
    for seconds in ([0, 1], [0, 2, 1, 3]):
        with pytest.raises(InputError, match="4 frames need as many times"):
            FrameArray(FRAMES, seconds)
