"""A hostile file costs neither memory nor time, and reads nothing but itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import pytest

from m2clip.data.video import base as video_base
from m2clip.data.video.mp4_header import announced_frames
from m2clip.data.video.readers import VideoError, open_video
from tests.data import video_files
from tests.data.video import hostile_files
from tests.data.video.test_readers import image_folder

MEGABYTE = 1 << 20


def cost(path: Path, indices: str = "[0, video.num_frames - 1]", reader: str = "pyav") -> tuple[str, int, float]:
    """What reading a file ends with, the bytes of memory it takes at most, and the seconds of one core."""
    code = f"""
        import re, resource
        from m2clip.data.video.readers import VideoError, open_video
        import av, PIL.Image
        def peak():
            # ru_maxrss would be that of the process which started this one, where that was larger.
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
        def seconds():
            used = resource.getrusage(resource.RUSAGE_SELF)
            return used.ru_utime + used.ru_stime
        before = peak(), seconds()
        try:
            with open_video({str(path)!r}, {reader!r}) as video:
                print(video.read_array({indices}).shape)
        except VideoError as error:
            print(error)
        print(peak() - before[0], seconds() - before[1])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    outcome, numbers = done.stdout.splitlines()
    return outcome, int(numbers.split()[0]), float(numbers.split()[1])


@pytest.mark.parametrize("count", [10**5, 10**7, 5 * 10**7, 10**9])
def test_announced_frames_take_no_memory(tmp_path: Path, count: int) -> None:
    path = hostile_files.announcing_frames(tmp_path / "many.mp4", count)
    assert announced_frames(path) == count
    outcome, memory, _ = cost(path)
    assert outcome == f"{path}: damaged: its header announces {count} frames, more than the file has bytes"
    assert memory < 50 * MEGABYTE


def test_announced_frames_of_healthy_files(tmp_path: Path) -> None:
    for name, frames in (("constant.mp4", 40), ("faststart.mp4", 40), ("b_frames.mkv", 0), ("raw.h264", 0)):
        assert announced_frames(video_files.GOOD_FILES[name](tmp_path / name)) == frames
    (tmp_path / "loop.mp4").write_bytes(b"\0\0\0\x08moov" * 5000)
    assert announced_frames(tmp_path / "loop.mp4") == 0


def test_pictures_that_the_header_does_not_tell_of(tmp_path: Path) -> None:
    path = hostile_files.announcing_pixels(tmp_path / "large.webm", 16000, 16000)
    outcome, memory, _ = cost(path)
    assert outcome.startswith(f"{path}: cannot be decoded")
    assert memory < 100 * MEGABYTE


def test_pictures_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile_files.large_pictures(tmp_path / "large.avi", 8000, 8400)
    assert path.stat().st_size < 2 * MEGABYTE
    with pytest.raises(VideoError, match="pictures of 8000 x 8400 pixels; more than 67108864 are not decoded"):
        open_video(path)
    with open_video(hostile_files.large_pictures(tmp_path / "allowed.avi", 2000, 1000), "pyav") as video:
        assert video.read_array([0]).shape == (1, 3, 1000, 2000)
        monkeypatch.setattr(video_base, "MAX_PIXELS", 1999 * 1000)
        with pytest.raises(VideoError, match="pictures of 2000 x 1000 pixels"):
            video.read_array([0])


def test_a_long_video_takes_little_memory(tmp_path: Path) -> None:
    path = hostile_files.many_packets(tmp_path / "long.avi", 200_000)
    outcome, memory, _ = cost(path, "range(0, video.num_frames, 25000)")
    assert outcome == "(8, 3, 16, 16)"
    # Times twice, places and four kinds of numbers take 8 or 4 bytes per frame: 8 MB. In lists of Python's integers, of
    # 8 + 32 bytes each, they would take 56 MB.
    assert memory < 32 * MEGABYTE


def test_a_video_of_too_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile_files.many_packets(tmp_path / "long.avi", 10_000)
    monkeypatch.setattr(video_base, "MAX_FRAMES", 9_000)
    with pytest.raises(VideoError, match=r"frames; videos of more than 9000 are not read: cut it into parts"):
        open_video(path)


def test_a_folder_that_announces_a_billion_images(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "clip", 2)
    with pytest.raises(VideoError, match="1000000000 frames; videos of more than"):
        open_video(folder, "frames", pattern="img_{:05d}.jpg", num_frames=10**9)


def test_images_that_unpack_to_too_much(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "clip"
    folder.mkdir()
    Image.new("1", (30_000, 30_000)).save(folder / "img_00001.png")
    assert (folder / "img_00001.png").stat().st_size < MEGABYTE
    outcome, memory, _ = cost(folder, "[0]", "frames")
    assert outcome.startswith(f"{folder}/img_00001.png: ")
    assert memory < 50 * MEGABYTE
    Image.new("1", (9_000, 9_000)).save(folder / "img_00001.png")
    outcome, memory, _ = cost(folder, "[0]", "frames")
    assert "pictures of 9000 x 9000 pixels" in outcome
    assert memory < 50 * MEGABYTE


@pytest.mark.parametrize("kind", ["lossless", "lossy", "animated"])
def test_webp_that_unpacks_to_too_much(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    small = Image.new("RGB", (64, 64))
    options = {"save_all": True, "append_images": [Image.new("RGB", (64, 64), "red")]} if kind == "animated" else {}
    small.save(path := tmp_path / "a.webp", lossless=kind == "lossless", **options)
    data = bytearray(path.read_bytes())
    if kind == "animated":
        data[24:30] = (15_999).to_bytes(3, "little") * 2
    elif kind == "lossy":
        data[26:30] = (16_000).to_bytes(2, "little") * 2
    else:
        bits = int.from_bytes(data[21:25], "little") >> 28 << 28
        data[21:25] = (bits | 15_999 | 15_999 << 14).to_bytes(4, "little")
    path.write_bytes(data)
    for given, indices in ((path, "[0]"), (tmp_path, "[0]")):
        outcome, memory, _ = cost(given, indices, "auto")
        assert outcome.startswith(f"{path}: pictures of 16000 x 16000 pixels")
        assert memory < 50 * MEGABYTE


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="only regular files are read"):
        open_video(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("reader", ["auto", "pyav", "frames"])
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, reader: str) -> None:
    with pytest.raises(VideoError):
        open_video(tmp_path / name, reader)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_file_that_names_others_is_not_followed(tmp_path: Path, reader: str) -> None:
    other = video_files.write_video(tmp_path / "other.mp4", num_frames=3)
    path = hostile_files.playlist(tmp_path / "list.mp4", other)
    with pytest.raises(VideoError, match="not a readable video"):
        open_video(path, reader)


def test_tags_in_another_encoding(tmp_path: Path) -> None:
    path = video_files.write_video(tmp_path / "a.avi", num_frames=3, codec="mpeg4", options={})
    data = path.read_bytes()
    assert data.count(b"Lavf") >= 1
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xff\xfe"))
    with open_video(path) as video:
        assert video.num_frames == 3


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_an_mp4_cut_just_between_two_frames(tmp_path: Path, reader: str) -> None:
    path = video_files.write_video(
        tmp_path / "cut.mp4", options={"bf": "0"}, container_options={"movflags": "faststart"}
    )
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[24]])
    with pytest.raises(VideoError, match="truncated or damaged: it ends after 24 frames"):
        open_video(path, reader)


def truncated(path: Path, share: float) -> Path:
    data = path.read_bytes()
    end = int(share * len(data))
    # Between two frames: a part of a frame would be noticed as such.
    path.write_bytes(data[: data.rindex(b"00dc", 0, end) if path.suffix == ".avi" else end])
    return path


@pytest.mark.parametrize("name", video_files.GOOD_FILES)
def test_healthy_files_hold_what_they_declare(tmp_path: Path, name: str) -> None:
    with open_video(video_files.GOOD_FILES[name](tmp_path / name), "pyav") as video:
        assert video.declared is None or video.num_frames >= 0.9 * video.declared
        if name.endswith((".mp4", ".avi", ".mkv", ".webm")) and not name.startswith("one_frame"):
            assert video.declared is not None


def test_frames_that_an_avi_leaves_out_are_not_missing(tmp_path: Path) -> None:
    times = [3 * number for number in range(20)]
    path = video_files.write_video(tmp_path / "a.avi", 20, codec="mpeg4", options={"bf": "2"}, times=times)
    with open_video(path, "pyav") as video:
        assert video.num_frames == 20 and video.declared is not None
        assert video.num_frames >= 0.9 * video.declared


@pytest.mark.parametrize("name", ["b_frames.mkv", "late_start.mkv", "vp9.webm", "mpeg4.avi", "mpeg4_b_frames.avi"])
def test_what_is_missing_of_a_truncated_file(tmp_path: Path, name: str) -> None:
    path = truncated(video_files.GOOD_FILES[name](tmp_path / name), 0.6)
    with open_video(path, "pyav") as video:
        assert video.declared is not None
        assert video.num_frames < 0.9 * video.declared
        assert 36 <= video.declared <= 44
