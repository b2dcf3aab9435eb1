"""Videos for the decoding benchmark: textured shapes that turn and drift over a moving textured ground, with grain."""

from __future__ import annotations

from collections.abc import Iterator
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
