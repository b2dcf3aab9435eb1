"""Every reader gives the same frame for the same index, on every kind of file, and refuses bad files in one line."""

from __future__ import annotations

import math
import random
from pathlib import Path

import av
import pytest
import torch

from m2clip.data.video.readers import FrameFolder, PyAVVideo, Video, VideoError, open_video
from m2clip.errors import InputError
from tests.data import video_files as files

READERS = ["pyav", "decord", "torchcodec"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def open_or_skip(path: Path, reader: str) -> Video:
    try:
        return open_video(path, reader)
    except VideoError:
        raise
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", files.GOOD_FILES)
def test_index_i_is_frame_i(folder: Path, name: str, reader: str) -> None:
    path = folder / name
    if not path.exists():
        files.GOOD_FILES[name](path)
    codes = files.expected_codes(name)
    with open_or_skip(path, reader) as video:
        assert video.num_frames == len(codes)
        assert [files.read_code(frame) for frame in video.read(range(len(codes)))] == codes
        shuffled = random.Random(0).choices(range(len(codes)), k=12)
        assert [files.read_code(frame) for frame in video.read(shuffled)] == [codes[index] for index in shuffled]
        for index in (len(codes) - 1, 0, len(codes) // 2):
            assert files.read_code(video.read([index])[0]) == codes[index]


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
@pytest.mark.parametrize("name", ["b_frames.mp4", "variable.mp4", "odd_size.mp4", "vp9.webm", "mpeg4.avi"])
def test_readers_agree_on_pixels(folder: Path, name: str, reader: str) -> None:
    path = folder / name
    if not path.exists():
        files.GOOD_FILES[name](path)
    with open_or_skip(path, reader) as video, open_video(path, "pyav") as reference:
        assert not video.uses_pyav
        indices = [3, 17, 39]
        difference = video.read(indices).int() - reference.read(indices).int()
    # The libraries carry different releases of FFmpeg, whose colour conversion may round differently.
    assert difference.abs().max() <= 2


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mp4", "one_key_frame.mp4"])
def test_seeking_gives_the_pixels_of_plain_decoding(folder: Path, name: str) -> None:
    path = folder / name
    if not path.exists():
        files.GOOD_FILES[name](path)
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with open_video(path, "pyav") as video:
        for indices in ([37], [5, 6, 30], [13, 2, 13]):
            assert torch.equal(video.read(indices).permute(0, 2, 3, 1), torch.stack([frames[i] for i in indices]))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["open_gop.mp4", "late_start.ts", "trimmed.mp4", "mpeg4_b_frames.avi"])
def test_files_that_other_libraries_miscount_are_read_by_pyav(folder: Path, name: str, reader: str) -> None:
    path = folder / name
    if not path.exists():
        files.GOOD_FILES[name](path)
    with open_or_skip(path, reader) as video:
        assert isinstance(video, PyAVVideo) or video.uses_pyav


@pytest.mark.parametrize("reader", READERS)
def test_shape_type_and_rate(tmp_path: Path, reader: str) -> None:
    path = files.write_video(tmp_path / "a.mp4", size=(96, 64))
    with open_or_skip(path, reader) as video:
        frames = video.read([4, 4, 0])
        assert (frames.shape, frames.dtype) == ((3, 3, 64, 96), torch.uint8)
        assert torch.equal(frames[0], frames[1])
        assert video.fps == pytest.approx(25)


def test_variable_frame_rate_is_the_mean_rate(tmp_path: Path) -> None:
    times = files.irregular_times()
    with open_video(files.write_video(tmp_path / "a.mp4", times=times), "pyav") as video:
        assert video.fps == pytest.approx((len(times) - 1) / (times[-1] - times[0]) * 100, rel=1e-6)


def test_lone_frame_has_no_rate(tmp_path: Path) -> None:
    with open_video(files.write_video(tmp_path / "a.mp4", num_frames=1)) as video:
        assert math.isnan(video.fps)


@pytest.mark.parametrize("indices", [[-1], [40], [0, 99]])
def test_index_outside_the_video(tmp_path: Path, indices: list[int]) -> None:
    with (
        open_video(files.write_video(tmp_path / "a.mp4")) as video,
        pytest.raises(IndexError, match="has frames 0 to 39"),
    ):
        video.read(indices)


def truncated(path: Path, share: float, **options: object) -> Path:
    files.write_video(path, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def zero_filled_tail(path: Path) -> Path:
    files.write_video(path, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10].ljust(len(data), b"\0"))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def without_frames(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        output.start_encoding()
    return path


FASTSTART = {"movflags": "faststart"}
BAD_FILES = {
    "missing": (lambda path: path, "no such file"),
    "empty": (lambda path: written(path, b""), "the file is empty"),
    "zeros": (lambda path: written(path, bytes(9999)), "filled with zeros"),
    "html": (lambda path: written(path, b"\n<!DOCTYPE html><html>404</html>"), "a web page saved as a video"),
    "text": (lambda path: written(path, b"hello " * 99), "not a readable video"),
    "no_index": (lambda path: truncated(path, 0.6), "not a readable video"),
    "truncated": (lambda path: truncated(path, 0.6, container_options=FASTSTART), "truncated or damaged"),
    "last_frame_cut": (lambda path: truncated(path, 0.99, container_options=FASTSTART), "truncated or damaged"),
    "audio_only": (files.write_audio_only, "has no video stream, only sound"),
    "zero_frames": (without_frames, "has no video stream|0 frames"),
    "timeless": (files.write_timeless, "frame rate 0: its 40 frames have no times"),
    "folder": (lambda path: path.mkdir() or path, "holds no images"),
}


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, reader: str
) -> None:
    write, message = BAD_FILES[name]
    path = write(tmp_path / "bad.mp4")
    capfd.readouterr()
    with pytest.raises(VideoError, match=message) as caught:
        open_or_skip(path, reader)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def noise_tail(path: Path) -> Path:
    """A video whose file was saved with the index intact but whose later frames are random bytes."""
    files.write_video(path, container_options=FASTSTART)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"mdat") + 4
    noise = random.Random(0)
    for position in range(start + (len(data) - start) // 2, len(data)):
        data[position] = noise.randrange(256)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("write", [zero_filled_tail, noise_tail])
def test_damaged_frames_are_named_when_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], write, reader: str
) -> None:
    path = write(tmp_path / "bad.mp4")
    with pytest.raises(VideoError, match="frame .* cannot be decoded"), open_or_skip(path, reader) as video:
        video.read(range(video.num_frames))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_cut_matroska_file_is_read_up_to_the_cut(tmp_path: Path, reader: str) -> None:
    path = truncated(tmp_path / "cut.mkv", 0.6, options={"crf": "20", "bf": "0"})
    with open_or_skip(path, reader) as video:
        assert 10 < video.num_frames < 30
        codes = [files.read_code(frame) for frame in video.read(range(video.num_frames))]
    assert codes == list(range(len(codes)))


def image_folder(path: Path, count: int) -> Path:
    from PIL import Image

    path.mkdir()
    for number in range(1, count + 1):
        Image.fromarray(files.code_image(number - 1, 96, 64)).save(path / f"img_{number:05d}.jpg")
    return path


def test_folder_of_images(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "clip", 12)
    (path / "notes.txt").write_text("not a frame")
    with open_video(path) as video:
        assert isinstance(video, FrameFolder)
        assert video.num_frames == 12
        assert math.isnan(video.fps)
        frames = video.read([11, 0, 5])
        assert (frames.shape, frames.dtype) == ((3, 3, 64, 96), torch.uint8)
        assert [files.read_code(frame) for frame in frames] == [11, 0, 5]
    with open_video(path, "frames", pattern="img_{:05d}.jpg") as video:
        assert video.num_frames == 12
    with open_video(path, "frames", pattern="img_{:05d}.jpg", num_frames=7) as video:
        assert video.num_frames == 7
        assert files.read_code(video.read([6])[0]) == 6


def test_bad_folder_of_images(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "clip", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="holds no images"):
        open_video(tmp_path / "empty")
    with pytest.raises(VideoError, match="no such folder of frames"):
        open_video(tmp_path / "none", "frames")
    with pytest.raises(VideoError, match="holds 3 images, 5 were announced"):
        open_video(path, "frames", num_frames=5)
    with open_video(path, "frames", pattern="img_{:05d}.jpg", num_frames=5) as video:
        with pytest.raises(VideoError, match=r"img_00005\.jpg: no such image"):
            video.read([4])
        (path / "img_00002.jpg").write_bytes(b"<html>")
        with pytest.raises(VideoError, match=r"img_00002\.jpg: not a readable image"):
            video.read([1])


def test_unknown_reader(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown video reader 'opencv'; choose from auto, decord, pyav"):
        open_video(tmp_path / "a.mp4", "opencv")
