"""How late the results of a stream are, by the clock of who sends it.

    python benchmarks/stream_latency.py
    python benchmarks/stream_latency.py --seconds 5     a quick look

A process sends a video of 640 x 360 pixels at 30 frames per second, H.264 in MPEG-TS, in real time: through a pipe, and
by UDP to this machine. It is FFmpeg's libraries by way of PyAV that encode and send. `m2clip stream` names shapes with
the bundled tiny CLIP, a window of 2 s every half second. A result at second s of the video is late by the time from
when the sender handed frame 30 s to the encoder until the line with the result was read. So encoding, sending,
decoding, the model and printing all count, and so does the rest of what this machine was doing.

Writes stream_latency.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.measure import parser, summary, write_results
from m2clip.data.built_in.motion_render import SHAPES

FPS, WIDTH, HEIGHT = 30, 640, 360
ROOT = Path(__file__).resolve().parent.parent
READY = 60  # seconds that the receiver may take until it listens
LATENCY = 1.0


def send(target: str, seconds: float, times: str) -> None:
    """Send a video in real time; write down when each frame went to the encoder."""
    import av

    from m2clip.data.built_in.motion import CLASSES, render_clip

    pictures = [
        np.kron(frame, np.ones((6, 10, 1), np.uint8))[:HEIGHT, :WIDTH] for frame in render_clip(CLASSES[0], seed=0)
    ]
    file: Any = os.fdopen(1, "wb", buffering=0) if target == "-" else target
    sent = []
    with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", FPS
        stream.codec_context.thread_count = 1
        start = time.monotonic()
        for number in range(round(seconds * FPS)):
            time.sleep(max(start + number / FPS - time.monotonic(), 0))
            sent.append(time.monotonic())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[number % len(pictures)], format="rgb24")))
        container.mux(stream.encode(None))
    Path(times).write_text(json.dumps(sent))


def receive(way: str, seconds: float, folder: Path, port: int) -> dict[str, Any]:
    """Latencies of one stream."""
    model = ("--clip", "tiny", "--labels", *(f"a {shape}" for shape in SHAPES))
    target = "-" if way == "pipe" else f"udp://127.0.0.1:{port}"
    listen = [sys.executable, "-m", "m2clip.cli", "stream", target, *model, "--json", "--timeout", "30"]
    times = folder / f"{way}.json"
    say = [sys.executable, __file__, "--send", target, "--seconds", str(seconds), "--out", str(times)]
    error = (folder / f"{way}.txt").open("w+")
    pipe = subprocess.PIPE
    with subprocess.Popen(listen, stdin=pipe, stdout=pipe, stderr=error, text=True, cwd=ROOT) as receiver:
        assert receiver.stdin is not None and receiver.stdout is not None
        if way == "udp":
            _wait_for_port(port)
        else:
            time.sleep(10)  # as long as it takes to load the model: what waits in the pipe by then is old
        sender = subprocess.Popen(say, stdout=receiver.stdin if way == "pipe" else None, cwd=ROOT)
        receiver.stdin.close()
        lines = [(time.monotonic(), json.loads(line)) for line in receiver.stdout]
    sender.wait()
    sent = json.loads(times.read_text())
    late = [at - sent[min(round(line["seconds"] * FPS), len(sent) - 1)] for at, line in lines]
    error.seek(0)
    told = error.read().splitlines()
    return {
        "way": way,
        "seconds": seconds,
        "results": len(late),
        "latency_s": {**summary(late), "max": max(late)},
        "within": sum(value <= LATENCY for value in late) / len(late),
        "told": told[0].removeprefix("m2clip: "),
        "exit_code": receiver.returncode,
    }


def _wait_for_port(port: int) -> None:
    """Return when somebody listens to a UDP port of this machine."""
    wanted = f":{port:04X} "
    end = time.monotonic() + READY
    while wanted not in Path("/proc/net/udp").read_text():
        if time.monotonic() > end:
            raise RuntimeError(f"nobody listens to port {port}")
        time.sleep(0.05)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, writes="the JSON")
    options.add_argument("--seconds", type=float, default=60, help="that are sent (default: 60)")
    options.add_argument("--port", type=int, default=5557, help="for UDP (default: 5557)")
    options.add_argument("--send", help="send to this address, or to standard output for -")
    args = options.parse_args(arguments)
    if args.send:
        send(args.send, args.seconds, str(args.out))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in ("pipe", "udp"):
            rows.append(receive(way, args.seconds, Path(folder), args.port))
            print(rows[-1], flush=True)
    load = [round(value, 1) for value in os.getloadavg()]
    content = {
        "video": f"{WIDTH}x{HEIGHT}, {FPS} frames per second",
        "cores": os.cpu_count(),
        "load": load,
        "rows": rows,
    }
    write_results("stream_latency", torch.device("cpu"), content, args.out)


if __name__ == "__main__":
    main()
