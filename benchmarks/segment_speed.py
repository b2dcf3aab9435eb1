"""Reading 500 parts of a long video against 500 files of the same parts.

    python benchmarks/segment_speed.py
    python benchmarks/segment_speed.py --minutes 2 --segments 10 --rounds 1     a quick look

A video of two hours, 64x64 pixels, 25 frames per second, H.264 with B-frames, has a key frame each second or, as x264
does by itself, each ten. Parts of 2 s begin anywhere in it, and are read in random order: 8 frames spread over each, or
all 50. The files have the same frames, each encoded anew with the same options. The two take turns in one process, and
the processor time of a turn is what counts. Before that, the first and the last part are compared with what decoding
from the start gives. Writes segment_speed.json.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch

from benchmarks.measure import interleave, parser, ratio, summary, write_results
from m2clip.data.sampling import uniform_indices
from m2clip.data.segment import Segment
from m2clip.data.video.readers import open_video

FPS, SIDE, SECONDS, FRAMES = 25, 64, 2, 8
MINUTE = 60 * FPS
KEY_FRAMES = (25, 250)


def pictures() -> list[np.ndarray]:
    """A minute of a pattern that moves."""
    rng = np.random.default_rng(0)
    pattern = (np.kron(rng.random((33, 33, 3)), np.ones((8, 8, 1))) * 255).astype(np.uint8)
    frames = []
    for number in range(MINUTE):
        x, y = (int(100 + 90 * turn(number / length)) for turn, length in ((np.sin, 40), (np.cos, 53)))
        frames.append(np.ascontiguousarray(pattern[y : y + SIDE, x : x + SIDE]))
    return frames


def write(path: Path, frames: list[np.ndarray], distance: int, minutes: int = 1) -> None:
    """Encode frames, and repeat them for so many minutes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.gop_size = "yuv420p", distance
        packets = []
        for frame in frames:
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        packets += stream.encode(None)
        length = round(len(frames) / FPS / packets[0].time_base)
        data = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for minute in range(minutes):
            for content, shown, decoded, key in data:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, packets[0].time_base, key
                packet.pts, packet.dts = shown + minute * length, decoded + minute * length
                container.mux(packet)


def read(path: Path, segment: Segment | None, frames: int) -> np.ndarray:
    """So many frames of a file or of a part of it."""
    with open_video(path, segment=segment) as video:
        every = frames >= video.num_frames
        return video.read_array(range(video.num_frames) if every else uniform_indices(video.num_frames, frames))


def measure(folder: Path, distance: int, minutes: int, number: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways for each number of frames, and their ratio."""
    frames, rng = pictures(), random.Random(0)
    path = folder / f"long_{distance}.mp4"
    write(path, frames, distance, minutes)
    starts = [rng.randrange(minutes * MINUTE - SECONDS * FPS) for _ in range(number)]
    segments = [Segment(start / FPS, start / FPS + SECONDS) for start in starts]
    files = [folder / f"{distance}_{place}.mp4" for place in range(number)]
    for file, start in zip(files, starts, strict=True):
        write(file, [frames[(start + shift) % MINUTE] for shift in range(SECONDS * FPS)], distance)
    with open_video(path) as whole:
        for place in (starts.index(min(starts)), starts.index(max(starts))):
            expected = whole.read_array(range(starts[place], starts[place] + SECONDS * FPS))
            if not np.array_equal(read(path, segments[place], SECONDS * FPS), expected):
                raise RuntimeError(f"{segments[place]} has other frames than the whole video there")
    found: dict[str, Any] = {}
    for count in (FRAMES, SECONDS * FPS):
        variants = {
            "parts": lambda count=count: [read(path, segment, count) for segment in segments],
            "files": lambda count=count: [read(file, None, count) for file in files],
        }
        seconds = interleave(variants, rounds, torch.device("cpu"), clock=time.process_time)
        found[f"{count} frames"] = {
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "parts_over_files": ratio(seconds["parts"], seconds["files"]),
        }
        print(distance, count, found[f"{count} frames"], flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, "--rounds", rounds=5, writes="the JSON")
    options.add_argument("--minutes", type=int, default=120, help="length of the video (default: 120)")
    options.add_argument("--segments", type=int, default=500, help="how many parts (default: 500)")
    args = options.parse_args(arguments)
    config = {"minutes": args.minutes, "segments": args.segments, "seconds": SECONDS, "side": SIDE, "fps": FPS}
    content: dict[str, Any] = {"config": config}
    with tempfile.TemporaryDirectory() as folder:
        for distance in KEY_FRAMES:
            name = f"key frames {distance} apart"
            content[name] = measure(Path(folder), distance, args.minutes, args.segments, args.rounds)
    write_results("segment_speed", torch.device("cpu"), content, args.out)


if __name__ == "__main__":
    main()
