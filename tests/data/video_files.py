"""Video files whose frames can be told apart: every frame shows its number as a row of black and white blocks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

BITS = 8
NUM_FRAMES = 40
TRIMMED = 17


def code_image(index: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: the upper half is the binary code, the lower half a coloured gradient."""
    image = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for bit in range(BITS):
        image[: height // 2, edges[bit] : edges[bit + 1]] = 235 if index >> bit & 1 else 20
    image[height // 2 :, :, 0] = 200
    image[height // 2 :, :, 1] = np.linspace(30, 220, width).astype(np.uint8)
    image[height // 2 :, :, 2] = 60
    return image


def read_code(frame: torch.Tensor) -> int:
    """The number shown by one (3, H, W) frame."""
    grey = frame.float().mean(0)
    height, width = grey.shape
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    value = 0
    for bit in range(BITS):
        quarter = (edges[bit + 1] - edges[bit]) // 4
        block = grey[height // 8 : 3 * height // 8, edges[bit] + quarter : edges[bit + 1] - quarter]
        value |= int(block.mean() > 128) << bit
    return value


def write_video(
    path: Path,
    num_frames: int = NUM_FRAMES,
    *,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    gop: int = 12,
    times: Sequence[int] | None = None,
    start: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write coded frames at 25 a second; `times` are presentation times in units of 1/100 s, `start` is added."""
    width, height = size
    ticks = [4 * i for i in range(num_frames)] if times is None else list(times)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.gop_size = gop
        stream.options = {"crf": "20", "preset": "veryfast"} if options is None else options
        variable = times is not None or start
        if variable:
            stream.codec_context.time_base = Fraction(1, 100)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(code_image(index, width, height), format="rgb24")
            frame.pts = ticks[index] + start if variable else index
            frame.time_base = Fraction(1, 100) if variable else Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_rotated(path: Path, plain: Path, degrees: int) -> Path:
    """A copy of a plain mp4 whose track header asks players to turn the picture clockwise by 90, 180 or 270 degrees."""
    data = bytearray(plain.read_bytes())
    header = data.index(b"tkhd")
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value * 0x10000 for value in matrix)
    # Version 0 of the box: the matrix of nine 32-bit numbers starts 40 bytes after the end of the box name.
    data[header + 44 : header + 80] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def write_audio_only(path: Path) -> Path:
    """An mp4 with one second of silence and no picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1000 * index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def irregular_times(num_frames: int = NUM_FRAMES) -> list[int]:
    """Presentation times with gaps of 1 to 19 hundredths of a second."""
    gaps = np.random.default_rng(0).integers(1, 20, num_frames)
    return [int(value) for value in np.cumsum(gaps) - gaps[0]]


def write_trimmed(path: Path, skipped: int) -> Path:
    """An mp4 whose edit list tells players to skip the first frames; they stay in the file for decoding."""
    write_video(path, options=B_FRAMES)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    duration, media_time = struct.unpack_from(">Ii", data, entry)
    # Track time is in 1/12800 s, movie time in 1/1000 s; a frame lasts 1/25 s.
    struct.pack_into(">Ii", data, entry, duration - 40 * skipped, media_time + 512 * skipped)
    path.write_bytes(data)
    return path


def write_timeless(path: Path) -> Path:
    """An mp4 whose frames all have the same time."""
    write_video(path, options={"crf": "20", "bf": "0"})
    data = bytearray(path.read_bytes())
    table = data.index(b"stts") + 8
    (entries,) = struct.unpack_from(">I", data, table)
    for entry in range(entries):
        struct.pack_into(">I", data, table + 8 + 8 * entry, 0)
    path.write_bytes(data)
    return path


B_FRAMES = {"crf": "20", "bf": "3", "b_strategy": "0", "preset": "medium"}

# Name -> writer of a healthy file of NUM_FRAMES frames (1 for "one_frame").
GOOD_FILES: dict[str, Callable[[Path], Path]] = {
    "constant.mp4": lambda path: write_video(path),
    "all_key_frames.mp4": lambda path: write_video(path, gop=1),
    "one_key_frame.mp4": lambda path: write_video(path, gop=250),
    "variable.mp4": lambda path: write_video(path, times=irregular_times()),
    "variable_b_frames.mp4": lambda path: write_video(path, times=irregular_times(), options=B_FRAMES),
    "b_frames.mp4": lambda path: write_video(path, options=B_FRAMES),
    "open_gop.mp4": lambda path: write_video(path, options={**B_FRAMES, "x264-params": "open-gop=1"}),
    "late_start.mp4": lambda path: write_video(path, start=350, options=B_FRAMES),
    "late_start.mkv": lambda path: write_video(path, start=350),
    "late_start.ts": lambda path: write_video(path, start=350, options=B_FRAMES),
    "fragmented.mp4": lambda path: write_video(
        path, options=B_FRAMES, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "faststart.mp4": lambda path: write_video(path, container_options={"movflags": "faststart"}),
    "b_frames.mkv": lambda path: write_video(path, options=B_FRAMES),
    "odd_size.mp4": lambda path: write_video(path, size=(97, 65), pixel_format="yuv444p"),
    "odd_size.webm": lambda path: write_video(path, size=(97, 65), codec="libvpx", options={"b": "1M"}),
    "vp9.webm": lambda path: write_video(path, codec="libvpx-vp9", options={"b": "500k", "cpu-used": "8"}),
    "mpeg4.avi": lambda path: write_video(path, codec="mpeg4", options={"b": "1000000"}),
    "mpeg4_b_frames.avi": lambda path: write_video(path, codec="mpeg4", options={"b": "1000000", "bf": "2"}),
    "mpeg2.mpg": lambda path: write_video(path, codec="mpeg2video", options={"b": "2000000", "bf": "2"}),
    "raw.h264": lambda path: write_video(path, options=B_FRAMES),
    "trimmed.mp4": lambda path: write_trimmed(path, TRIMMED),
    "one_frame.mp4": lambda path: write_video(path, num_frames=1),
    "one_frame.webm": lambda path: write_video(path, num_frames=1, codec="libvpx", options={"b": "1M"}),
    "one_frame.avi": lambda path: write_video(path, num_frames=1, codec="mpeg4", options={"b": "1000000"}),
}


def expected_codes(name: str) -> list[int]:
    """The numbers that the frames of one of the `GOOD_FILES` show, in order."""
    if name.startswith("one_frame"):
        return [0]
    return list(range(TRIMMED if name.startswith("trimmed") else 0, NUM_FRAMES))
