"""A part of a video has the frames of the whole video that are shown in it, whatever the container and the codec."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2clip.data.clips import ClipSettings, load_views
from m2clip.data.lists.annotations import VideoItem
from m2clip.data.segment import Segment
from m2clip.data.video import segment as segments
from m2clip.data.video.isolated import open_isolated
from m2clip.data.video.readers import SegmentError, VideoError, open_video
from tests.data import video_files as files

PARTS = ((0.0, 0.4), (0.2, 0.6), (0.5, 0.52), (0.501, 0.51), (0.64, 1.2), (1.0, 1.04), (0.0, 1.2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def made(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        files.GOOD_FILES[name](path)
    return path


@pytest.mark.parametrize("name", files.GOOD_FILES)
def test_a_part_has_the_frames_that_are_shown_in_it(folder: Path, name: str) -> None:
    path = made(folder, name)
    with open_video(path) as whole:
        times = whole.seconds(range(whole.num_frames))
        assert times is not None
        frames = whole.read_array(range(whole.num_frames))
    for start, end in PARTS:
        if end > times[-1]:
            continue
        expected = [n for n, time in enumerate(times) if start - 1e-6 <= time < end - 1e-6]
        expected = expected or [max(n for n, time in enumerate(times) if time <= start + 1e-6)]
        with open_video(path, segment=(start, end)) as part:
            assert part.num_frames == len(expected)
            assert np.array_equal(part.read_array(range(len(expected))), frames[expected])
            assert np.array_equal(part.read_array([len(expected) - 1]), frames[expected[-1:]])
            seconds = [times[n] - times[expected[0]] for n in expected]
            assert part.seconds(range(len(expected))) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("name", ["b_frames.mp4", "variable.mp4", "vp9.webm", "odd_size.mp4"])
def test_only_the_packets_of_the_part_are_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(self: segments.SegmentVideo) -> None:
        raise AssertionError("the whole file was scanned")

    monkeypatch.setattr(segments.SegmentVideo, "_opened_whole", whole)
    with open_video(made(folder, name), segment=(0.5, 0.7)) as part:
        part.read_array(range(part.num_frames))
        assert len(part._video._found.stamps) < files.NUM_FRAMES


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm", "mpeg4.avi"])
@pytest.mark.parametrize("opener", [open_video, open_isolated])
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ((1.0, 1.9), "the segment 1.0-1.9 s ends after the video, which lasts 1.6 s"),
        ((5.0, 6.0), "the segment 5.0-6.0 s starts after the video, which lasts 1.6 s"),
        ((-1.0, 1.0), "starts before the video"),
        ((1.0, 1.0), "is empty"),
        ((float("nan"), 1.0), "has a time that is no number"),
    ],
)
def test_a_part_that_is_not_there(folder: Path, name: str, opener: object, part: tuple, said: str) -> None:
    with pytest.raises(SegmentError, match=said.replace(".0", "")) as caught:
        opener(made(folder, name), segment=part)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_an_end_that_is_rounded_up_is_taken(folder: Path) -> None:
    with open_video(made(folder, "b_frames.mp4"), segment=(1.2, 1.65)) as part:
        assert part.num_frames == 10


def test_folders_and_damaged_files_have_no_parts(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a").mkdir()
    for n in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "a" / f"{n}.png")
    with pytest.raises(VideoError, match="no times"):
        open_video(tmp_path / "a", segment=(0, 1))
    data = made(folder, "b_frames.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="cut.mp4"):
        open_video(tmp_path / "cut.mp4", segment=(0, 1))
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path / "absent.mp4", segment=(0, 1))


def test_files_stay_open_and_a_replaced_one_is_read_anew(tmp_path: Path) -> None:
    path = files.write_video(tmp_path / "a.mp4")
    with open_video(path, segment=(0.4, 0.8)) as part:
        assert files.read_code(part.read([0])[0]) == 10
    files.write_video(tmp_path / "b.mp4", times=[8 * n for n in range(files.NUM_FRAMES)])
    os.replace(tmp_path / "b.mp4", path)
    with open_video(path, segment=(0.4, 0.8)) as part:
        assert files.read_code(part.read([0])[0]) == 5


def test_two_parts_of_a_file_are_open_at_once(tmp_path: Path) -> None:
    path = files.write_video(tmp_path / "a.mp4", options=files.B_FRAMES)
    with open_video(path, segment=(0.4, 0.8)) as one, open_video(path, segment=(1.2, 1.6)) as other:
        for n in range(10):
            assert files.read_code(one.read([n])[0]) == 10 + n
            assert files.read_code(other.read([n])[0]) == 30 + n


def test_clips_are_of_the_part(tmp_path: Path) -> None:
    path = files.write_video(tmp_path / "a.mp4")
    settings = ClipSettings(num_frames=4, size=32)
    parts = [load_views(VideoItem(path, 0, segment=Segment(*part)), settings) for part in ((0, 0.8), (0.8, 1.6))]
    assert not (parts[0] == parts[1]).all()
