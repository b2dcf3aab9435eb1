"""Videos for the decoding benchmark: textured shapes that turn and drift over a moving textured ground, with grain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, SECONDS = 340, 256, 10


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) between 0 and 255, with the falling spectrum of natural pictures."""
    noise = np.fft.rfft2(rng.standard_normal((3, height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = np.fft.irfft2(noise / frequency**1.2, s=(height, width))
    waves = (waves - waves.mean((1, 2), keepdims=True)) / waves.std((1, 2), keepdims=True)
    # Mostly grey: the channels of a picture go together.
    return (128 + 45 * (0.35 * waves + 0.65 * waves.mean(0))).clip(0, 255).transpose(1, 2, 0)


def pictures(seed: int, count: int) -> Iterator[np.ndarray]:
    """Frames (HEIGHT, WIDTH, 3) uint8."""
    rng = np.random.default_rng(seed)
    ground = texture(rng, 2 * HEIGHT, 2 * WIDTH)
    sizes = (110, 90, 70, 60)
    shapes = [(texture(rng, size, size), rng.uniform(0, 6, 2), rng.uniform(0.01, 0.06, 4)) for size in sizes]
    grain = rng.normal(0, 2.5, (16, HEIGHT, WIDTH, 1))
    for number in range(count):
        top = int((1 + np.sin(0.011 * number + seed)) * HEIGHT / 2.01)
        left = int((1 + np.cos(0.013 * number)) * WIDTH / 2.01)
        frame = ground[top : top + HEIGHT, left : left + WIDTH].copy()
        for surface, phase, speed in shapes:
            size = len(surface)
            rows, columns = np.mgrid[:size, :size] - size / 2
            disc = rows**2 + columns**2 < (size / 2) ** 2
            y, x = ((1 + np.sin(phase + speed[:2] * number)) * (np.array([HEIGHT, WIDTH]) - size) / 2).astype(int)
            turned = np.roll(surface, (int(20 * number * speed[2]), int(10 * number * speed[3])), (0, 1))
            frame[y : y + size, x : x + size][disc] = turned[disc]
        yield (frame + grain[rng.integers(16)]).clip(0, 255).astype(np.uint8)


def write_video(path: Path, seed: int, keyframes: int, fps: int, seconds: float = SECONDS) -> Path:
    """H.264 as x264 makes it by default, key frames at most so many frames apart."""
    import av

    with av.open(str(path), "w") as container:
        options = {"crf": "23", "preset": "medium", "x264-params": f"keyint={keyframes}"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures(seed, round(seconds * fps)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_xvid(avi: Path, mp4: Path, seed: int, keyframes: int, fps: int, seconds: float = SECONDS) -> None:
    """MPEG-4 part 2 with two B-frames in a row, packed into an AVI as XviD does, and the same stream in an mp4."""
    import av

    context = av.CodecContext.create("mpeg4", "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate = Fraction(1, fps), Fraction(fps)
    context.gop_size, context.max_b_frames, context.bit_rate = keyframes, 2, 800_000
    packets = []
    for number, picture in enumerate(pictures(seed, round(seconds * fps))):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, context.time_base
        packets += context.encode(frame)
    packets += context.encode(None)
    with av.open(str(mp4), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    with av.open(str(mp4)) as source, av.open(str(avi), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, (data, key) in enumerate(packed([(bytes(packet), packet.is_keyframe) for packet in packets])):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, fps), key
            packet.pts = packet.dts = number
            container.mux(packet)


_PICTURE = b"\0\0\1\xb6"


def packed(packets: Sequence[tuple[bytes, bool]]) -> list[tuple[bytes, bool]]:
    """A stream of MPEG-4 part 2 as DivX and XviD pack it for AVI, which has no times of presentation.

    The first picture that is predicted from both sides shares the packet of the one before, the others follow a packet
    later, and a picture that says that nothing has changed takes the place of the last.

    Args:
        packets: one picture each, and whether it is a key frame; times in the pictures have five bits.
    """
    found: list[tuple[bytes, bool]] = []
    left = list(packets)
    while left:
        first, key = left.pop(0)
        start = first.index(_PICTURE)
        between = [data for data, _ in itertools.takewhile(lambda packet: _from_both_sides(packet[0]), left)]
        del left[: len(between)]
        if key:
            first = first[:start] + b"\0\0\1\xb2DivX503b1393p" + first[start:]
        found.append((first + b"".join(between[:1]), key))
        found += [(data, False) for data in between[1:]]
        if between:
            found.append((_unchanged(first[first.index(_PICTURE) :]), False))
    return found


def _from_both_sides(data: bytes) -> bool:
    return data[data.index(_PICTURE) + 4] >> 6 == 2


def _unchanged(picture: bytes) -> bytes:
    """A picture of the same time in which nothing has changed."""
    bits = f"{int.from_bytes(picture[4:12], 'big'):064b}"
    time = bits.index("0", 2) + 2
    made = "01" + "0" + "1" + bits[time : time + 5] + "1" + "0"
    made += "0" + "1" * (-(len(made) + 1) % 8)
    return _PICTURE + int(made, 2).to_bytes(len(made) // 8, "big")
