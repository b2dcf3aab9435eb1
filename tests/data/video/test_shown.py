"""Frames as players show them: the right stream, turned, mirrored, with square pixels, in the size of the first."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from m2clip.data.video.display import displayed_size
from m2clip.data.video.readers import VideoError, open_video
from tests.data import video_files as files
from tests.data.video.test_readers import open_or_skip

READERS = ["pyav", "decord", "torchcodec"]
CRF = {"crf": "20", "bf": "0"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", 5, size=(96, 64))


# What is stored at (x, y) is shown at (a x + c y, b x + d y).
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "upright": ((1, 0, 0, 1), lambda shown: shown),
    "a quarter to the right": ((0, 1, -1, 0), lambda shown: np.rot90(shown, -1, (2, 3))),
    "half": ((-1, 0, 0, -1), lambda shown: np.rot90(shown, 2, (2, 3))),
    "a quarter to the left": ((0, -1, 1, 0), lambda shown: np.rot90(shown, 1, (2, 3))),
    "left and right exchanged": ((-1, 0, 0, 1), lambda shown: shown[..., ::-1]),
    "top and bottom exchanged": ((1, 0, 0, -1), lambda shown: shown[:, :, ::-1]),
    "rows and columns exchanged": ((0, 1, 1, 0), lambda shown: shown.swapaxes(2, 3)),
    "exchanged about the other diagonal": ((0, -1, -1, 0), lambda shown: shown.swapaxes(2, 3)[:, :, ::-1, ::-1]),
    "aslant": ((2, 3, -3, 2), lambda shown: np.rot90(shown, -1, (2, 3))),
    "none": ((0, 0, 0, 0), lambda shown: shown),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", MATRICES)
def test_display_matrix(plain: Path, tmp_path: Path, name: str, reader: str) -> None:
    matrix, shown = MATRICES[name]
    data = bytearray(plain.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30 if any(matrix) else 0)
    (path := tmp_path / "a.mp4").write_bytes(data)
    with open_or_skip(path, reader) as video, open_video(plain, "pyav") as original:
        expected = shown(original.read_array([1, 4]))
        frames = video.read_array([1, 4])
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).max() <= 3


def with_pixels(path: Path, shape: Fraction, size: tuple[int, int] = (96, 64)) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=CRF)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape
        for index in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(files.code_image(index, *size), format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("shape", "shown"),
    [("2/1", (192, 64)), ("1/2", (96, 128)), ("16/15", (102, 64)), ("1/1", (96, 64)), ("1/200", (96, 64))],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_that_are_not_square(
    tmp_path: Path, suffix: str, shape: str, shown: tuple[int, int], reader: str
) -> None:
    with open_or_skip(with_pixels(tmp_path / f"a.{suffix}", Fraction(shape)), reader) as video:
        frames = video.read([3, 0])
    assert tuple(frames.shape) == (2, 3, shown[1], shown[0])
    assert [files.read_code(frame) for frame in frames] == [3, 0]


def test_displayed_size() -> None:
    assert displayed_size(720, 576, 16 / 15) == (768, 576)
    assert displayed_size(720, 480, 8 / 9) == (720, 540)
    # Nonsense is not followed.
    assert displayed_size(720, 480, 1000) == displayed_size(720, 480, 0.0) == (720, 480)


def two_streams(path: Path, streams: list[tuple[str, int, tuple[int, int], int]]) -> Path:
    """A file of streams of (codec, frames, size, disposition), whose frames count from 100 times their place."""
    with av.open(str(path), "w") as output:
        made = []
        for codec, _, (width, height), disposition in streams:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append(stream)
        for place, (stream, (_, count, size, _)) in enumerate(zip(made, streams, strict=True)):
            for index in range(count):
                picture = files.code_image(100 * place + index, *size)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(stream.encode(None))
    return path


SMALL, LARGE = (64, 48), (96, 64)
DEFAULT = 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("streams", "shown"),
    [
        ([("mpeg4", 5, SMALL, 0), ("mpeg4", 8, LARGE, DEFAULT)], 1),
        ([("mpeg4", 8, SMALL, DEFAULT), ("mpeg4", 5, LARGE, 0)], 0),
        ([("mpeg4", 8, SMALL, 0), ("mpeg4", 5, LARGE, 0)], 1),
        ([("mjpeg", 1, LARGE, DEFAULT), ("mpeg4", 5, SMALL, 0)], 1),
        ([("mpeg4", 5, SMALL, 0), ("mjpeg", 1, LARGE, 0)], 0),
        ([("mjpeg", 1, LARGE, 0), ("mjpeg", 1, SMALL, 0)], 0),
    ],
)
def test_which_of_several_streams(
    tmp_path: Path, streams: list[tuple[str, int, tuple[int, int], int]], shown: int, reader: str
) -> None:
    with open_or_skip(two_streams(tmp_path / "a.mkv", streams), reader) as video:
        assert video.num_frames == streams[shown][1]
        assert video.read_array([0]).shape[:1:-1] == streams[shown][2]
        codes = [files.read_code(frame) for frame in video.read(range(video.num_frames))]
    assert codes == [100 * shown + index for index in range(len(codes))]


def changing_size(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A webm whose pictures change their size every five frames; its header tells the first."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx", rate=25, options={"b": "1M"})
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuv420p"
        output.start_encoding()
        for part, (width, height) in enumerate(sizes):
            own = av.CodecContext.create("libvpx", "w")
            own.width, own.height, own.pix_fmt, own.options = width, height, "yuv420p", {"b": "1M"}
            own.time_base = Fraction(1, 25)
            for index in range(5):
                picture = files.code_image(5 * part + index, width, height)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, own.time_base
                packets = own.encode(frame)
                for packet in packets:
                    packet.pts = packet.dts = 5 * part + index
                    packet.stream, packet.time_base = stream, own.time_base
                    output.mux(packet)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("indices", [[0, 7, 12], [7], [12, 1], [14]])
def test_a_size_that_changes_is_scaled_to_the_first(tmp_path: Path, indices: list[int], reader: str) -> None:
    path = changing_size(tmp_path / "a.webm", [(96, 64), (192, 128), (48, 32)])
    with open_or_skip(path, reader) as video:
        frames = video.read(indices)
    assert frames.shape[2:] == (64, 96)
    assert [files.read_code(frame) for frame in frames] == indices


@pytest.mark.parametrize("indices", [[7], [9, 1], [2]])
def test_a_size_that_changes_in_a_stream_for_transmission(tmp_path: Path, indices: list[int]) -> None:
    parts = [
        files.write_video(tmp_path / f"{width}.ts", 5, size=(width, 2 * width // 3), options=CRF) for width in (96, 192)
    ]
    (path := tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path, "pyav") as video:
        assert video.num_frames == 10
        frames = video.read(indices)
    assert frames.shape[2:] == (64, 96)
    assert [files.read_code(frame) for frame in frames] == [index % 5 for index in indices]


def animation(path: Path, count: int, **options: object) -> Path:
    pictures = [Image.fromarray(files.code_image(index, 96, 64)) for index in range(count)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


@pytest.mark.parametrize("suffix", ["webp", "avif", "gif", "png"])
def test_animated_pictures(tmp_path: Path, suffix: str) -> None:
    path = animation(tmp_path / f"a.{suffix}", 12, duration=[40] * 6 + [80] * 6)
    with open_video(path) as video:
        assert video.num_frames == 12
        assert [files.read_code(frame) for frame in video.read([11, 3, 3, 0])] == [11, 3, 3, 0]
        assert [files.read_code(video.read([index])[0]) for index in (5, 2)] == [5, 2]
        assert video.seconds([0, 1, 6, 7]) == pytest.approx([0, 0.04, 0.24, 0.32])
        assert video.fps == pytest.approx(11 / 0.64)


def test_a_webp_picture_and_damaged_ones(tmp_path: Path) -> None:
    Image.fromarray(files.code_image(3, 96, 64)).save(tmp_path / "still.webp")
    with open_video(tmp_path / "still.webp") as video:
        assert (video.num_frames, files.read_code(video.read([0])[0])) == (1, 3)
        assert np.isnan(video.fps)
    data = animation(tmp_path / "a.webp", 12).read_bytes()
    for share in (0.02, 0.5, 0.9):
        (tmp_path / "cut.webp").write_bytes(data[: int(share * len(data))])
        with pytest.raises(VideoError, match="cut.webp: ") as met, open_video(tmp_path / "cut.webp") as video:
            video.read_array(range(video.num_frames))
        assert "\n" not in str(met.value)


def test_a_gif_is_counted_without_decoding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2clip.data.video.pyav import PyAVVideo

    path = tmp_path / "a.gif"
    first, other = (Image.new("P", (600, 400), colour) for colour in (0, 1))
    first.save(path, save_all=True, append_images=[other, first] * 150, duration=20, optimize=False)
    given = 0
    decoded = PyAVVideo._decoded_from

    def counted(self: PyAVVideo, *args: object):
        nonlocal given
        for frame in decoded(self, *args):
            given += 1
            yield frame

    monkeypatch.setattr(PyAVVideo, "_decoded_from", counted)
    with open_video(path) as video:
        assert video.num_frames == 301
    assert given <= 12
