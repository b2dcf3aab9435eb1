"""Folders of images: which of them are frames, in which order, and what is opened at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2clip.data.check.files import Depth
from m2clip.data.check.lists import check_list
from m2clip.data.video.pictures import read_picture
from m2clip.data.video.readers import Video, VideoError, open_video
from m2clip.errors import InputError
from tests.data import video_files as files


def write(folder: Path, *names: str) -> Path:
    """Images whose codes count the names."""
    folder.mkdir(exist_ok=True)
    for code, name in enumerate(names):
        Image.fromarray(files.code_image(code, 96, 64)).save(folder / name)
    return folder


def codes(video: Video) -> list[int]:
    return [files.read_code(frame) for frame in video.read(range(video.num_frames))]


FLOW = [f"flow_{axis}_{number:05d}.jpg" for axis in "xy" for number in range(1, 4)]


@pytest.mark.parametrize(
    ("frames", "besides"),
    [
        ([f"frame_{number}.jpg" for number in range(1, 13)], []),
        ([f"{number}.png" for number in range(12)], []),
        ([f"IMG_{number}.JPG" for number in range(98, 103)], ["cover.jpg"]),
        ([f"{number:05d}.jpg" for number in (99998, 99999, 100000, 100001)], []),
        ([f"img_{number:05d}.jpg" for number in range(4)], FLOW),
        ([f"image_{number:04d}.png" for number in range(1, 4)], [*FLOW, "thumb.jpg", "._image_0001.png"]),
        ([f"img_{number:05d}.jpg" for number in range(1, 4)], ["img_00001_thumb.jpg", "thumb_1.jpg", ".img_00001.jpg"]),
        ([f"img_{number}.jpg" for number in range(1, 4)], [f"rgb_{number}.jpg" for number in range(1, 4)]),
        ([f"img_{number}.jpg" for number in (9, 10)] + ["img_11.png"], []),
        ([f"v2_cam1_{number}.webp" for number in (8, 9, 10)], []),
        ([f"clip{part}_{number}.bmp" for part in (1, 2, 10) for number in (2, 11)], []),
        ([f"{number}.jpg" for number in (0, 5, 10, 100)], []),
        (["a.jpg", "b.jpg", "c.jpg"], []),
        (FLOW[:3], []),
        ([f"flower_{number}.jpg" for number in (1, 2)], ["preview.png"]),
        (["first.jpg"], []),
    ],
)
def test_which_images_are_frames_and_their_order(tmp_path: Path, frames: list[str], besides: list[str]) -> None:
    folder = write(tmp_path / "clip", *frames)
    for name in besides:
        (folder / name).write_bytes(b"no frame")
    (folder / "notes.txt").write_text("no frame")
    (folder / "deeper.jpg").mkdir()
    with open_video(folder) as video:
        assert codes(video) == list(range(len(frames)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["rgb_1.jpg", "rgb_2.jpg", "nir_1.jpg", "nir_2.jpg"],
            r"2 kinds of names \(nir_1.jpg, rgb_1.jpg\).*frames:NAME",
        ),
        (FLOW, r"2 kinds of names \(flow_x_00001.jpg, flow_y_00001.jpg\)"),
        (["frame.jpg", "frame1.jpg", "frame2.jpg"], "2 kinds of names"),
        (["1.jpg", "01.jpg"], "01.jpg and 1.jpg are both the frame of one number"),
        (["img_1.jpg", "img_1.png"], "img_1.jpg and img_1.png are both the frame of one number"),
    ],
)
def test_images_that_cannot_be_told_apart(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_video(write(tmp_path / "clip", *names))


def test_names_by_option(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip", "rgb_0.jpg", "rgb_1.jpg", "nir_00001.png", "nir_00002.png", "rgb_10.jpg")
    with open_video(folder, "frames:rgb_{}.jpg") as video:
        assert codes(video) == [0, 1, 4]
    for pattern in ("frames:nir_{:05d}.png", "frames:nir_{:05}.png"):
        with open_video(folder, pattern) as video:
            assert codes(video) == [2, 3]
    with pytest.raises(VideoError, match="holds no images named left_"):
        open_video(folder, "frames:left_{}.jpg")
    for wrong in (
        "frames:",
        "frames:rgb.jpg",
        "frames:{}_{}.jpg",
        "frames:{:0999999999d}",
        "frames:../{}.jpg",
        "frame",
    ):
        with pytest.raises(InputError, match="unknown video reader|no pattern of image names"):
            open_video(folder, wrong)


@pytest.mark.parametrize("first", [0, 1])
def test_frames_that_are_announced(tmp_path: Path, first: int) -> None:
    folder = write(tmp_path / "clip", *(f"frame_{number:06d}.jpg" for number in range(first, first + 6)))
    for expected in (None, "frame_{:06d}.jpg", "img_{:05d}.jpg"):
        with open_video(folder, pattern=expected, num_frames=4) as video:
            assert codes(video) == [0, 1, 2, 3]
    (folder / f"frame_{first + 2:06d}.jpg").unlink()
    with open_video(folder, pattern="frame_{:06d}.jpg", num_frames=6) as video:
        assert [files.read_code(frame) for frame in video.read([0, 3, 5])] == [0, 3, 5]
        with pytest.raises(VideoError, match=rf"frame_00000{first + 2}\.jpg: no such image"):
            video.read([2])


def test_a_list_of_folders_with_other_names(tmp_path: Path) -> None:
    write(tmp_path / "a", *(f"{number:04d}.png" for number in range(1, 9)))
    write(tmp_path / "b", *(f"img_{number:05d}.jpg" for number in range(8)), *FLOW)
    (tmp_path / "l.txt").write_text("a 8 0\nb 8 0\n")
    assert check_list(tmp_path / "l.txt", depth=Depth(num_frames=2)).problems == []


# ---- what is opened ----


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "PDF", "ICO", "TGA", "JPEG2000"])
def test_only_pictures_of_frames_are_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "img_00001.jpg", kind)
    # For PostScript, Pillow would start a program.
    monkeypatch.setattr("subprocess.check_call", lambda *args, **more: pytest.fail("a program was started"))
    with open_video(tmp_path) as video, pytest.raises(VideoError, match="neither JPEG, PNG, WebP nor BMP"):
        video.read_array([0])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_pictures_are_opened_by_content(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(files.code_image(5, 96, 64)).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "img_00001.jpeg")
    with open_video(tmp_path) as video:
        assert codes(video) == [5]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, make) -> None:
    folder = write(tmp_path / "clip", "img_00001.jpg", "img_00002.jpg", "img_00003.jpg")
    (folder / "img_00002.jpg").unlink()
    make(folder / "img_00002.jpg")
    make(tmp_path / "v.mp4")
    with open_video(folder) as video, pytest.raises(VideoError, match=r"img_00002\.jpg: .*only regular files"):
        video.read_array([1])
    with pytest.raises(VideoError, match="only regular files"):
        open_video(tmp_path / "v.mp4")
    (tmp_path / "l.txt").write_text("v.mp4 0\n")
    problems = check_list(tmp_path / "l.txt", depth=Depth("count")).problems
    assert [problem.kind for problem in problems] == ["unreadable"]


GREY = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    frame = read_picture(tmp_path / "a.png")
    assert frame.shape == (3, 64, 96)
    assert np.abs(frame - GREY / 65535 * 255).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1"])
def test_kinds_of_pictures(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(files.code_image(5, 96, 64)).convert("RGB" if mode in ("P", "PA") else mode)
    if mode in ("P", "PA"):
        picture = picture.quantize(64)
    options = {"transparency": 0} if mode == "PA" else {}
    picture.save(path := tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), **options)
    frame = read_picture(path)
    assert (frame.shape, frame.dtype) == ((3, 64, 96), np.uint8)
    assert files.read_code(torch.from_numpy(frame.copy())) == 5
