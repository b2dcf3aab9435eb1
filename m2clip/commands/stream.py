"""`m2clip stream`: what happens in a video that is still going on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.output import print_line
from m2clip.commands.shared.parsing import (
    add_clip,
    add_command,
    add_device,
    add_frozen,
    add_labels,
    add_views,
    not_negative_seconds,
    positive,
    seconds,
)
from m2clip.errors import LostSourceError
from m2clip.terminal import json_text, tell

if TYPE_CHECKING:
    from m2clip.data.video.live import LiveVideo
    from m2clip.prediction.streams import StreamPrediction

EXAMPLE = """  m2clip stream 0 --run runs/k400
  m2clip stream rtsp://camera.local/live --labels "a person falls" "nothing happens" --json
  ffmpeg -re -i film.mp4 -f mpegts - | m2clip stream - --run runs/k400

ends with the source or at Ctrl-C. Frames are dropped where a result would come later than --latency after them."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "stream", run, "Name what happens now, in a camera or a stream", EXAMPLE)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="number of a camera, /dev/video*, address (rtsp, rtp, udp, tcp, http), - for standard input, growing file",
    )
    parser.add_argument("--run", dest="run_folder", help="run folder (default: frozen CLIP)")
    add_labels(parser)
    parser.add_argument("--window", type=seconds, default=2.0, help="seconds that the model sees at once (default: 2)")
    parser.add_argument("--step", type=seconds, help="seconds between results (default: a quarter of the window)")
    parser.add_argument(
        "--smoothing",
        type=not_negative_seconds,
        default=1.0,
        help="seconds after which an old score counts 1/e; 0 smooths nothing (default: 1)",
    )
    parser.add_argument("--latency", type=seconds, default=1.0, help="most seconds that results are late (default: 1)")
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, help="seconds without a frame that end it (default: 10)"
    )
    parser.add_argument("--top", type=positive, default=3, help="how many classes to print (default: 3)")
    add_clip(parser)
    add_frozen(parser)
    add_views(parser, sampled=False)
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON value a line")


def run(args: argparse.Namespace) -> None:
    """Open the source, then the model; print until the source ends."""
    from m2clip.data.video.live import LiveVideo

    # The source first: what it sends while the model is loaded is taken, and dropped where it is too old.
    with LiveVideo(args.source, latency=args.latency, timeout=args.timeout) as source:
        _stream(args, source)


def _stream(args: argparse.Namespace, source: LiveVideo) -> None:
    from m2clip import distributed
    from m2clip.prediction.streams import stream
    from m2clip.towers.precision import place
    from m2clip.train.setup import clip_settings

    folder = Path(args.run_folder) if args.run_folder else None
    model = models.open_labelled(args, folder, models.given_names(args, folder))
    model = place(model, distributed.init(device=args.device), args.precision)
    settings = clip_settings(models.run_config(args, folder), model)
    results = stream(
        model,
        source,
        window=args.window,
        step=args.step,
        smoothing=args.smoothing,
        latency=args.latency,
        top=args.top,
        precision=args.precision,
        crops=settings.crops,
        normalize=settings.normalize,
        transform=settings.transform,
    )
    summary = _Summary(source, args.latency)
    try:
        for found in results:
            summary.add(found)
            if args.json:
                print(json_text(found.to_dict(), None), flush=True)
            else:
                print_line(repr(found))
                sys.stdout.flush()
    except (KeyboardInterrupt, LostSourceError):
        summary.tell()
        raise
    summary.tell()


class _Summary:
    """What a stream came to, in one line."""

    def __init__(self, source: LiveVideo, latency: float) -> None:
        self._source, self._allowed = source, latency
        self._results = self._skipped = 0
        self._latest = 0.0

    def add(self, found: StreamPrediction) -> None:
        """Take in a result."""
        self._results += 1
        self._skipped += found.skipped
        self._latest = max(self._latest, found.latency or 0.0)

    def tell(self) -> None:
        """Say it."""
        source = self._source
        text = f"{source.name}: {self._results} results of {source.seen} frames, at most {self._latest:.2f} s late"
        if source.dropped or self._skipped:
            text += f"; {source.dropped} frames and {self._skipped} results dropped to stay within {self._allowed:g} s"
        tell(text)
