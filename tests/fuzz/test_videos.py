"""Damaged videos: frames or one line, whatever was done to the file, with every reader."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2clip.data.video.isolated import DecoderLimits, DecoderProcess
from m2clip.data.video.readers import open_video
from tests.data.video import hostile_files
from tests.data.video_files import B_FRAMES, write_video
from tests.fuzz.mutations import attempt, cases, outcomes

FILES = {
    "a.mp4": {"options": B_FRAMES},
    "faststart.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.avi": {"codec": "mpeg4", "options": {"b": "1000000"}},
    "a.webm": {"codec": "libvpx", "options": {"b": "200k"}},
    "a.mkv": {"options": B_FRAMES},
    "a.ts": {"options": B_FRAMES},
}
BOXES = re.compile(
    rb"moov|trak|mdia|minf|stbl|stsz|stsc|stco|stts|ctts|elst|tkhd|mvhd|stsd|avc1|avcC|moof|trun|LIST|idx1|strh|strf"
)
SIZES = (0, 1, 7, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1000)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {
        name: write_video(folder / name, num_frames=16, size=(48, 32), **options).read_bytes()
        for name, options in FILES.items()
    }


@pytest.fixture(scope="module")
def process() -> Iterator[DecoderProcess]:
    made = DecoderProcess(DecoderLimits(seconds=60, memory=1 << 30))
    yield made
    made.close()


@st.composite
def damages(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with up to four kinds of damage."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not damaged:
            break
        kind = draw(st.sampled_from(("bits", "bits", "cut", "swap", "box", "box", "field", "field", "zeros", "noise")))
        start = draw(st.integers(0, len(damaged) - 1))
        stop = min(start + draw(st.sampled_from((4, 16, 64, 512, 4096))), len(damaged))
        places = [match.start() for match in BOXES.finditer(damaged)]
        if kind == "bits":
            for place in draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=20)):
                damaged[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del damaged[start : stop if draw(st.booleans()) else None]
        elif kind == "swap":
            damaged[:] = damaged[:start] + damaged[stop:] + damaged[start:stop]
        elif kind == "box" and places:
            place = draw(st.sampled_from(places))
            if place >= 4:
                struct.pack_into(">I", damaged, place - 4, draw(st.sampled_from(SIZES)))
        elif kind == "field" and places:
            place = draw(st.sampled_from(places)) + 4 + 4 * draw(st.integers(0, 24))
            if place + 4 <= len(damaged):
                order = draw(st.sampled_from((">I", "<I")))
                struct.pack_into(order, damaged, place, draw(st.sampled_from(SIZES) | st.integers(0, 2**32 - 1)))
        elif kind == "zeros":
            damaged[start:stop] = bytes(stop - start)
        elif kind == "noise":
            damaged[start:stop] = draw(st.binary(min_size=stop - start, max_size=stop - start))
    return bytes(damaged)


def read(process: DecoderProcess, path: Path, reader: str) -> None:
    with process.open(path, reader) as video:
        assert 0 < video.num_frames < 10_000
        wanted = sorted({0, video.num_frames // 2, video.num_frames - 1})
        frames = video.read_array(wanted)
        assert frames.shape[:2] == (len(wanted), 3)
        if (times := video.seconds(wanted)) is not None:
            assert len(times) == len(wanted)


@pytest.mark.parametrize("reader", ["pyav", "auto"])
@cases(0.12)
@given(st.data())
def test_damaged_videos(
    tmp_path_factory: pytest.TempPathFactory,
    originals: dict[str, bytes],
    process: DecoderProcess,
    reader: str,
    data: st.DataObject,
) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(damages(originals[name])))
    before = process.pid
    message = ""

    def reading() -> None:
        nonlocal message
        try:
            read(process, path, reader)
        except Exception as error:
            message = str(error)
            raise

    attempt(f"videos, {reader}", reading)
    # The child answers for exceptions that nobody expected; here they are mistakes.
    unexpected = re.search(r"cannot be decoded: \w*(Error|Exception|Iteration): ", message)
    assert not unexpected, message
    if before is not None and process.pid != before:
        outcomes[f"videos, {reader}", f"ended the decoder ({message.rpartition(': ')[2]})"] += 1


@cases(0.04)
@given(st.data())
def test_damaged_images(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from PIL import Image

    folder = tmp_path_factory.getbasetemp() / "images"
    folder.mkdir(exist_ok=True)
    suffix = data.draw(st.sampled_from(("jpg", "png", "webp", "bmp")))
    path = folder / f"img_00001.{suffix}"
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(path)
    path.write_bytes(data.draw(damages(path.read_bytes())))

    def reading() -> None:
        with open_video(folder, "frames", pattern=f"img_{{:05d}}.{suffix}") as video:
            assert video.read([0]).shape[:2] == (1, 3)

    attempt("images", reading)


@cases(0.02)
@given(st.integers(0, 2**32 - 1), st.integers(1, 16383), st.integers(1, 16383))
def test_announced_numbers(
    tmp_path_factory: pytest.TempPathFactory, process: DecoderProcess, count: int, width: int, height: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for path in (
        hostile_files.announcing_frames(folder / "count.mp4", count),
        hostile_files.announcing_pixels(folder / "size.webm", width, height),
    ):
        attempt("announced numbers", lambda path=path: read(process, path, "pyav"))
