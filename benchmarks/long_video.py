"""When something happens in a long video: is it found, how fast, and in how much memory.

    python benchmarks/long_video.py
    python benchmarks/long_video.py --segments 6 --rounds 1 --minutes 1 2     a quick look

A video of ten minutes has 60 segments of 10 s. In each a shape of the built-in data set moves, grows, turns or fades:
clips of 1.3 to 2 s, each on another ground, 12 frames per second. The bundled tiny CLIP, untrained, is asked for the
six shapes by `m2clip predict --window 2 --step 0.5 --min-length 3`; these numbers were chosen on a video of another
seed.

* A segment counts as right if a segment of its class is found that overlaps with it by half of both (tIoU 0.5); its two
  borders are right if that segment's are at most a second away.
* Time: the whole command, against cutting the video into files (decoded and encoded again, since borders are no key
  frames) and `m2clip predict` of these. The files are its 60 segments, whose borders somebody has to know, in one
  process or in a process each, or all its windows, which tell the same as the command. Of the processes 12 of 60 are
  run in each round, and counted five-fold. The command also runs with one window for each segment, as many clips as
  there are segments. Variants take turns.
* Memory: the largest resident memory of a process that is given a video of 10 and one of 60 minutes.

Writes long_video.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.measure import parser, ratio, summary, write_results
from m2clip.data.built_in.motion import CLASSES, render_clip
from m2clip.data.built_in.motion_render import SHAPES
from m2clip.data.built_in.rendered_set import FPS

SECONDS = 10
OPTIONS = ("--window", "2", "--step", "0.5", "--min-length", "3")
MODEL = ("--clip", "tiny", "--labels", *(f"a {shape}" for shape in SHAPES))
SAMPLED = 12  # files of a round that are predicted in a process each

MEMORY = """
import json, sys, torch, m2clip
torch.set_num_threads(1)
model = m2clip.create_model("clip", m2clip.load_clip("tiny"), class_names=sys.argv[2:], num_frames=8)

def gib(line):
    with open("/proc/self/status") as file:
        return next(int(text.split()[1]) for text in file if text.startswith(line)) / 1024**2

def note(done, total):
    seen.append(gib("VmRSS"))

before, seen = gib("VmHWM"), []
m2clip.predict(model, sys.argv[1], window=2, step=0.5, min_length=3, progress=note)
parts = [round(max(seen[place * len(seen) // 6 : (place + 1) * len(seen) // 6]), 4) for place in range(6)]
print(json.dumps({"loaded": round(before, 4), "peak": round(gib("VmHWM"), 4), "sixths": parts}))
"""


def segments(number: int, seed: int) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Class names of segments, no two neighbours alike, and the frames of each."""
    rng, before = np.random.default_rng(seed), ""
    for _ in range(number):
        shown = [one for one in CLASSES if one.shape != before]
        of_class = shown[rng.integers(len(shown))]
        before = of_class.shape

        def frames(of_class: Any = of_class) -> Iterator[np.ndarray]:
            left = SECONDS * FPS
            while left:
                clip = render_clip(of_class, int(rng.integers(2**31)))[:left]
                left -= len(clip)
                yield from clip

        yield f"a {of_class.shape}", frames()


def write(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Frames as H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "18"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def long_video(path: Path, number: int, seed: int) -> list[str]:
    """Write a video of so many segments; returns their classes."""
    names: list[str] = []

    def frames() -> Iterator[np.ndarray]:
        for name, shown in segments(number, seed):
            names.append(name)
            yield from shown

    write(path, frames())
    return names


def cut(path: Path, folder: Path, length: float, step: float) -> list[Path]:
    """Parts of a video as files, each so many seconds after the one before."""
    import av

    folder.mkdir()
    files: list[Path] = []
    waiting: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            waiting.append(frame.to_ndarray(format="rgb24"))
            if len(waiting) == round(length * FPS):
                files.append(folder / f"{len(files):04}.mp4")
                write(files[-1], iter(waiting))
                del waiting[: round(step * FPS)]
    return files


def command(*words: object) -> str:
    """What `m2clip` prints."""
    line = [sys.executable, "-m", "m2clip.cli", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def accuracy(names: list[str], found: list[dict[str, Any]]) -> dict[str, Any]:
    """How many segments and borders are right."""
    right, distances = 0, []
    for place, name in enumerate(names):
        start, end = place * SECONDS, (place + 1) * SECONDS
        for one in found:
            common = min(end, one["end"]) - max(start, one["start"])
            both = max(end, one["end"]) - min(start, one["start"])
            if one["name"] == name and common / both >= 0.5:
                right += 1
                distances += [abs(one["start"] - start), abs(one["end"] - end)]
    near = sum(distance <= 1 for distance in distances)
    return {
        "segments": len(names),
        "found": len(found),
        "right": right,
        "borders_within_1s": near / (2 * len(names)),
        "border_distance_s": summary(distances) if distances else None,
    }


def speed(path: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the variants, and how much longer those of files take."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any], times: float = 1.0) -> Any:
        start = time.perf_counter()
        found = run()
        seconds.setdefault(name, []).append((time.perf_counter() - start) * times)
        return found

    def predict(*words: object) -> Callable[[], str]:
        return lambda: command("predict", *words, *MODEL, "--json")

    for place in range(rounds):
        timed("windows", predict(path, *OPTIONS))
        timed("windows of 10 s, each 10 s", predict(path, "--window", SECONDS, "--step", SECONDS))
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder) / "segments", Path(folder) / "windows"
            files = timed("cut segments", lambda whole=whole: cut(path, whole, SECONDS, SECONDS))
            timed("segments, one process", predict(whole))
            some = files[place % 5 :: 5][:SAMPLED]
            timed(
                "segments, a process each",
                lambda some=some: [predict(file)() for file in some],
                len(files) / len(some),
            )
            timed("cut windows", lambda parts=parts: cut(path, parts, 2.0, 0.5))
            timed("windows as files, one process", predict(parts))
    ratios = {}
    for name in [name for name in seconds if "process" in name]:
        before = seconds["cut windows" if name.startswith("windows") else "cut segments"]
        total = [one + other for one, other in zip(before, seconds[name], strict=True)]
        ratios[f"cut + {name}"] = ratio(total, seconds["windows"])
        if name.startswith("segments"):  # as many clips as windows
            ratios[f"cut + {name}, over windows of 10 s"] = ratio(total, seconds["windows of 10 s, each 10 s"])
    return {"seconds": {name: summary(values) for name, values in seconds.items()}, "times_windows": ratios}


def memory(folder: Path, minutes: int) -> dict[str, Any]:
    """GiB of a process that is given a video of so many minutes."""
    path = folder / f"{minutes}.mp4"
    long_video(path, minutes * 60 // SECONDS, seed=2)
    words = [sys.executable, "-c", MEMORY, str(path), *MODEL[3:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, "--rounds", rounds=3, writes="the JSON")
    options.add_argument("--segments", type=int, default=60, help="of the video (default: 60)")
    options.add_argument("--minutes", type=int, nargs=2, default=(10, 60), help="videos for memory (default: 10 60)")
    args = options.parse_args(arguments)
    content: dict[str, Any] = {"options": " ".join(OPTIONS)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        names = long_video(path, args.segments, seed=0)
        (found,) = json.loads(command("predict", path, *MODEL, *OPTIONS, "--json"))
        content["accuracy"] = accuracy(names, found["segments"])
        print(content["accuracy"], flush=True)
        shorter, longer = (memory(Path(folder), minutes) for minutes in args.minutes)
        growth = longer["peak"] / shorter["peak"] - 1
        content["memory"] = {
            "gib": {f"{minutes} min": one for minutes, one in zip(args.minutes, (shorter, longer), strict=True)},
            "growth": growth,
        }
        print(content["memory"], flush=True)
        content["speed"] = speed(path, args.rounds)
        print(content["speed"], flush=True)
    write_results("long_video", torch.device("cpu"), content, args.out)


if __name__ == "__main__":
    main()
