"""Video files with wrong times or none: streams in AVI, packed as XviD does, and their copies in other containers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from benchmarks.decode_videos import packed
from tests.data.video_files import write_video

NUM_FRAMES = 26
_MPEG4 = {"b": "1000000"}


def decoded(path: Path) -> list[np.ndarray]:
    """(3, H, W) of all frames of the best stream, decoded from start to end."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        # What is shown for a damaged frame depends on the number of threads.
        stream.thread_count = 1
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                frames += packet.decode()
    return [frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in frames]


def copied(path: Path, source: Path, packets: list[tuple[bytes, bool]] | None = None) -> Path:
    """A stream in another container, its times of presentation those of decoding, as ffmpeg -c copy leaves them.

    Args:
        path: what is written; its suffix decides about the container.
        source: the file whose stream is copied.
        packets: other packets in place of those of the file, and whether they are key frames.
    """
    with av.open(str(source)) as original, av.open(str(path), "w") as output:
        stream = original.streams.video[0]
        copy = output.add_stream_from_template(stream)
        if packets is None:
            packets = [(bytes(packet), packet.is_keyframe) for packet in original.demux(stream) if packet.size]
        for number, (data, key) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, key
            packet.pts = packet.dts = number
            output.mux(packet)
    return path


def write_packed(path: Path, between: int) -> Path:
    """An AVI in which every picture that waits for a later one lies in the packet of the picture before."""
    plain = write_video(
        path.with_name("plain.avi"), NUM_FRAMES, codec="mpeg4", options={**_MPEG4, "bf": str(between)}, gop=9
    )
    with av.open(str(plain)) as container:
        packets = [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    return copied(path, plain, packed(packets))


def _encoded(codec: str, options: dict[str, str]) -> Callable[[Path], Path]:
    return lambda path: write_video(path, NUM_FRAMES, codec=codec, options=options, gop=9)


# Name -> writer of an AVI.
STREAMS: dict[str, Callable[[Path], Path]] = {
    "mpeg4": _encoded("mpeg4", _MPEG4),
    "mpeg4_b": _encoded("mpeg4", {**_MPEG4, "bf": "2"}),
    "packed_1": lambda path: write_packed(path, 1),
    "packed_2": lambda path: write_packed(path, 2),
    "packed_3": lambda path: write_packed(path, 3),
    "h264": _encoded("libx264", {"crf": "20", "bf": "0"}),
    "h264_b": _encoded("libx264", {"crf": "20", "bf": "3", "b_strategy": "0"}),
    "mpeg2_b": _encoded("mpeg2video", {"b": "2000000", "bf": "2"}),
    "msmpeg4": _encoded("msmpeg4", _MPEG4),
    "mjpeg": lambda path: write_video(path, NUM_FRAMES, codec="mjpeg", pixel_format="yuvj420p", options={}),
    "raw": lambda path: write_video(path, NUM_FRAMES, codec="rawvideo", options={}),
}
