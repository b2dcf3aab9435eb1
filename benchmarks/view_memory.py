"""Peak memory of a process that scores many clips of one long video.

    python benchmarks/view_memory.py
    python benchmarks/view_memory.py --clips 4 --seconds 2 --clip tiny    a quick look

A video of 20 s, 1280 x 720 pixels, H.264 with key frames 250 frames apart, is scored with 60 clips by frozen CLIP with
random weights from a file (ViT-B/16) and by the bundled tiny CLIP, each in a process of its own, whose peak counts
everything: interpreter, libraries, weights, frames and views. "imported" is the peak before the weights are read,
"loaded" before the video is opened, "views" after its views are there, and "scored" after two of the forward passes,
which all have one size. Writes view_memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.decode_videos import texture
from benchmarks.measure import parser, write_results

WIDTH, HEIGHT, FPS = 1280, 720, 25
MODELS = ("tiny", "ViT-B-16-quickgelu")

# On its own, so that it can measure another version of the package on the path.
CHILD = """
import json, sys, time
import av, open_clip, torchvision
import m2clip.methods
from m2clip.data.clips import load_views
from m2clip.methods.views import default_settings
from m2clip.prediction.videos import predict_video

def peak():
    with open("/proc/self/status") as file:  # getrusage counts the process that started this one as well
        return next(round(int(line.split()[1]) / 1024**2, 3) for line in file if line.startswith("VmHWM"))

path, name, clips, isolate, score = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1", sys.argv[5] == "1"
found = {"imported": peak()}
clip = m2clip.load_clip(name, sys.argv[6] if len(sys.argv) > 6 else None)
model = m2clip.create_model("clip", clip, class_names=["a", "b"], num_frames=8).eval()
settings = default_settings(model, clips=clips, isolate=isolate)
found["loaded"] = peak()
start = time.perf_counter()
load_views(path, settings, pixels=True)
found["seconds"] = round(time.perf_counter() - start, 2)
found["views"] = peak()
passes = []

def stop(module, given, output):
    passes.append(output)
    if len(passes) == 2:
        raise StopIteration

if score:
    model.register_forward_hook(stop)
    try:
        predict_video(model, path, settings=settings)
    except StopIteration:
        pass
    found["scored"] = peak()
print(json.dumps(found))
"""


def write_video(path: Path, seconds: float) -> Path:
    """A textured ground that drifts under grain, encoded as x264 does it by default."""
    import av

    rng = np.random.default_rng(0)
    ground = texture(rng, HEIGHT + 200, WIDTH + 200).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "x264-params": "keyint=250"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(round(seconds * FPS)):
            top, left = number % 200, 2 * number % 200
            picture = np.ascontiguousarray(ground[top : top + HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_weights(folder: Path, name: str) -> list[str]:
    """A file of random weights; none for the tiny CLIP, which has its own."""
    import open_clip

    if name == "tiny":
        return []
    torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}.pt")
    return [str(folder / f"{name}.pt")]


def measure(path: Path, name: str, weights: list[str], clips: int, isolate: bool, score: bool) -> dict[str, Any]:
    """GiB at the peak, and seconds, of one process."""
    words = [str(path), name, str(clips), str(int(isolate)), str(int(score)), *weights]
    done = subprocess.run([sys.executable, "-P", "-c", CHILD, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, writes="the JSON")
    options.add_argument("--clips", type=int, default=60, help="of the video (default: 60)")
    options.add_argument("--seconds", type=float, default=20, help="length of the video (default: 20)")
    options.add_argument("--clip", nargs="+", default=MODELS, help="which CLIP (default: tiny and ViT-B/16)")
    options.add_argument("--views-only", action="store_true", help="leave out the model's forward passes")
    args = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "long.mp4", args.seconds)
        rows = []
        for name in args.clip:
            weights = write_weights(Path(folder), name)
            for isolate in (False, True):
                found = measure(path, name, weights, args.clips, isolate, not args.views_only)
                rows.append({"clip": name, "isolated": isolate, "gib": found})
                print(rows[-1], flush=True)
    content = {"clips": args.clips, "video": f"{args.seconds:g} s, {WIDTH}x{HEIGHT}, {FPS} frames per second"}
    write_results("view_memory", torch.device("cpu"), {**content, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
