"""Small files that ask for much: what they announce, or unpack to, is out of all proportion to their size."""

from __future__ import annotations

import struct
from pathlib import Path

import av

from tests.data.video_files import write_video


def announcing_frames(path: Path, count: int) -> Path:
    """An mp4 whose header says that there are `count` frames of one byte each."""
    write_video(path, num_frames=10, gop=1, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    sizes, chunks, times = (data.index(name) for name in (b"stsz", b"stsc", b"stts"))
    struct.pack_into(">II", data, sizes + 8, 1, count)
    struct.pack_into(">I", data, chunks + 16, count)
    struct.pack_into(">I", data, times + 12, count)
    path.write_bytes(data)
    return path


def announcing_pixels(path: Path, width: int, height: int) -> Path:
    """A webm whose first frame says that it is this large, while the container says nothing of the kind."""
    write_video(path, num_frames=4, codec="libvpx", options={"b": "100k"})
    data = bytearray(path.read_bytes())
    start = data.index(b"\x9d\x01\x2a") + 3
    struct.pack_into("<HH", data, start, width, height)
    path.write_bytes(data)
    return path


def large_pictures(path: Path, width: int, height: int) -> Path:
    """A video of a few kilobytes that does decode to one picture of this size."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        frame = av.VideoFrame(width, height, "yuvj420p")
        for plane, value in zip(frame.planes, (16, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def many_packets(path: Path, count: int) -> Path:
    """An AVI of `count` frames, each a copy of the same few bytes."""
    first = write_video(path.with_name("first.avi"), num_frames=1, codec="mpeg4", size=(16, 16), options={})
    with av.open(str(first)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        data = bytes(next(source.demux(video=0)))
        for index in range(count):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.stream, packet.time_base, packet.is_keyframe = stream, stream.time_base, True
            output.mux(packet)
    return path


def playlist(path: Path, other: Path) -> Path:
    """A text that makes FFmpeg read another file."""
    path.write_text(f"ffconcat version 1.0\nfile {other.name}\n")
    return path
