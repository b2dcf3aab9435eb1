"""Frame i is what decoding from start to end gives at place i, whatever the times say; it is sought where proven."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.decode_videos import write_xvid
from m2clip.data.video.readers import PyAVVideo, open_video
from tests.data import video_files as files
from tests.data.video import coded_files as coded
from tests.data.video.test_readers import open_or_skip

READERS = ["pyav", "decord", "torchcodec"]
CONTAINERS = ["avi", "mp4", "mkv"]
# Not every codec has a place in every container.
WITHOUT = {("raw", "mp4"), ("raw", "mkv"), ("msmpeg4", "mp4")}  # containers that cannot hold the stream


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Streams and containers, of which there are files."""
    return [(name, container) for name in names for container in CONTAINERS if (name, container) not in WITHOUT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


def stream_in(folder: Path, name: str, container: str) -> Path:
    original, path = folder / f"{name}.avi", folder / f"{name}.{container}"
    if not original.exists():
        coded.STREAMS[name](original)
    return path if path.exists() else coded.copied(path, original)


def assert_frames(path: Path, reader: str) -> None:
    """Alone in random order, every third, and all at once: the frames of decoding from the start."""
    truth = coded.decoded(path)
    count = len(truth)
    with open_or_skip(path, reader) as video:
        # The libraries carry different releases of FFmpeg, whose colour conversion may round differently.
        tolerance = 0 if isinstance(video, PyAVVideo) or video.uses_pyav else 3
        assert video.num_frames == count
        alone = random.Random(0).sample(range(count), count)
        for indices in [*([index] for index in alone), range(0, count, 3), range(count)]:
            for frame, index in zip(video.read_array(indices), indices, strict=True):
                assert np.abs(frame.astype(int) - truth[index]).max() <= tolerance, (index, list(indices))
        seconds = video.seconds(range(count))
    assert seconds is None or seconds == sorted(seconds)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "container"), pairs(coded.STREAMS))
def test_streams_with_wrong_times(folder: Path, name: str, container: str, reader: str) -> None:
    assert_frames(stream_in(folder, name, container), reader)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of all frames that the decoder gives."""
    numbers: list[int] = []
    decoded = PyAVVideo._decoded_from

    def counted(self: PyAVVideo, *args: object) -> Iterator[av.VideoFrame]:
        for frame in decoded(self, *args):
            numbers.append(frame.pts)
            yield frame

    monkeypatch.setattr(PyAVVideo, "_decoded_from", counted)
    return numbers


@pytest.mark.parametrize(
    ("name", "container"), pairs(["mpeg4", "mpeg4_b", "packed_1", "packed_2", "h264", "msmpeg4", "mjpeg"])
)
def test_what_is_proven_is_sought(folder: Path, name: str, container: str, given: list[int]) -> None:
    with open_video(stream_in(folder, name, container), "pyav") as video:
        assert len(given) < video.num_frames
        given.clear()
        video.read_array([video.num_frames - 1])
    # The key frames are 9 apart.
    assert len(given) <= 9


def test_a_layer_that_the_first_packet_writes_otherwise_is_sought(tmp_path: Path, given: list[int]) -> None:
    paths = tmp_path / "a.avi", tmp_path / "a.mp4"
    write_xvid(*paths, seed=0, keyframes=9, fps=30, seconds=1)
    for path in paths:
        given.clear()
        with open_video(path, "pyav") as video:
            assert len(given) < video.num_frames == 30
        assert_frames(path, "pyav")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["mpeg4", "packed_2", "h264_b", "msmpeg4"])
def test_an_index_that_is_missing_or_marks_all_as_key_frames(
    folder: Path, tmp_path: Path, name: str, reader: str
) -> None:
    data = bytearray(stream_in(folder, name, "avi").read_bytes())
    place = data.rindex(b"idx1")
    (path := tmp_path / "a.avi").write_bytes(data[:place] + b"JUNK" + data[place + 4 :])
    assert_frames(path, reader)
    (size,) = struct.unpack_from("<I", data, place + 4)
    for entry in range(place + 8, place + 8 + size, 16):
        data[entry + 4] |= 0x10
    path.write_bytes(data)
    assert_frames(path, reader)


def test_a_frame_of_av1_that_no_other_refers_to(tmp_path: Path) -> None:
    path = files.write_video(
        tmp_path / "a.mp4", 20, codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}
    )
    truth = coded.decoded(path)
    # What is left out for the first frame that is read would be left out for good.
    for index in range(20):
        with open_video(path, "pyav") as video:
            assert np.array_equal(video.read_array([index])[0], truth[index])


@pytest.fixture(scope="module")
def streamed(folder: Path) -> dict[str, Path]:
    options = {"crf": "20", "bf": "2", "b_strategy": "0"}
    mpeg2 = {"b": "2000000", "bf": "2"}
    return {
        "h264.ts": files.write_video(folder / "h264.ts", 90, options=options),
        "open.ts": files.write_video(folder / "open.ts", 90, options={**options, "x264-params": "open-gop=1"}),
        "mpeg2.ts": files.write_video(folder / "mpeg2.ts", 90, codec="mpeg2video", options=mpeg2),
        "mpeg2.mpg": files.write_video(folder / "mpeg2.mpg", 90, codec="mpeg2video", options=mpeg2),
        "mpeg2.vob": files.write_video(folder / "mpeg2.vob", 90, codec="mpeg2video", options=mpeg2),
    }


STREAMED = ["h264.ts", "open.ts", "mpeg2.ts", "mpeg2.mpg", "mpeg2.vob"]


@pytest.mark.parametrize("name", STREAMED)
def test_streams_for_transmission(streamed: dict[str, Path], name: str) -> None:
    assert_frames(streamed[name], "pyav")


@pytest.mark.parametrize("name", ["h264.ts", "open.ts", "mpeg2.ts"])
def test_a_sound_transport_stream_is_not_decoded_to_count_it(
    streamed: dict[str, Path], name: str, given: list[int]
) -> None:
    with open_video(streamed[name], "pyav") as video:
        # A trial at the start, and the frames after the last key frame of those 12 apart.
        assert len(given) <= 12 + 15
        given.clear()
        video.read_array([video.num_frames - 1])
    assert len(given) <= 15


PACKET = 188
DAMAGES = {
    "start": lambda data: data[PACKET * 30 :],
    "end": lambda data: data[: len(data) * 6 // 10],
    "hole": lambda data: data[: PACKET * 40] + data[PACKET * 52 :],
    "bits": lambda data: data[:9000] + bytes(byte ^ 0x55 for byte in data[9000:9300]) + data[9300:],
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", STREAMED)
def test_damaged_streams_for_transmission(
    streamed: dict[str, Path], tmp_path: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGES[damage](streamed[name].read_bytes()))
    assert_frames(path, "pyav")


def packets_of(path: Path) -> list[tuple[bytes, bool]]:
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("name", ["h264", "h264_b", "mpeg4_b", "msmpeg4"])
def test_damaged_packets_are_shown_as_after_all_that_came_before(folder: Path, tmp_path: Path, name: str) -> None:
    source = stream_in(folder, name, "avi")
    packets = [
        (data[: len(data) // 3] if number in (9, 11, 13) else data, key)
        for number, (data, key) in enumerate(packets_of(source))
    ]
    assert_frames(coded.copied(tmp_path / "a.avi", source, packets), "pyav")


def test_missing_packets(tmp_path: Path) -> None:
    options = {"crf": "20", "x264-params": "bframes=4:b-adapt=0:b-pyramid=normal:open-gop=1:scenecut=0"}
    source = files.write_video(tmp_path / "whole.mkv", 60, options=options, gop=20)
    with av.open(str(source)) as original, av.open(str(path := tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream_from_template(original.streams.video[0])
        for number, packet in enumerate(original.demux(video=0)):
            if packet.size and number not in (24, 25, 26):
                packet.stream = stream
                output.mux(packet)
    assert_frames(path, "pyav")


def test_a_layer_of_mpeg4_without_waiting_frames_after_one_with_them(folder: Path, tmp_path: Path) -> None:
    source = stream_in(folder, "mpeg4_b", "avi")
    packets = packets_of(source) + packets_of(stream_in(folder, "mpeg4", "avi"))
    assert_frames(coded.copied(tmp_path / "a.avi", source, packets), "pyav")


@pytest.mark.parametrize("reader", READERS)
def test_times_before_zero(tmp_path: Path, reader: str) -> None:
    source = files.write_video(tmp_path / "a.mkv", 26, start=-50, container_options={"avoid_negative_ts": "disabled"})
    assert_frames(source, reader)


def test_decord_gives_no_other_frame_in_place_of_one_that_does_not_come(tmp_path: Path) -> None:
    source = files.write_video(tmp_path / "whole.mp4", 26, codec="mpeg4", options={"b": "1000000"}, gop=26)
    # Pictures without content, of which the decoder gives nothing and says nothing.
    packets = [(data if key else b"\0\0\1\xb6", key) for data, key in packets_of(source)]
    with open_or_skip(source, "decord") as video:
        video.path = coded.copied(tmp_path / "a.mp4", source, packets)
        assert video._opens() and video._fetch([0, 5]) is None
