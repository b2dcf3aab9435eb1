"""`m2clip pack`: store a data set for fast reading."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.shared.models import read_list
from m2clip.commands.shared.output import print_json, print_line, progress_bar
from m2clip.commands.shared.parsing import add_command, add_json, add_mismatched, add_source, as_field, positive
from m2clip.errors import InputError

EXAMPLE = """  m2clip pack train.txt packed/train
  m2clip pack k400/train.csv packed/k400 --root k400/videos --frames 64
  m2clip pack train.txt packed/train_mp4 --video --keyframes 16
  m2clip train --config m2clip_k400_b16_8f --data.train packed/train

The folder then stands for the list. After an interruption, the same command resumes."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "pack", run, "Store the videos of a list as frames in tar shards, or re-encoded, for reading", EXAMPLE
    )
    add_source(parser)
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; new, or of an interrupted call")
    add_mismatched(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--video", action="store_true", help="write mp4 files with many key frames in place of shards")
    kind.add_argument(
        "--frames",
        type=_frames,
        help="frames of a video, evenly spread (default: 32), or all: for clips at a stride",
    )
    parser.add_argument("--short-side", type=positive, help="of the frames, in pixels (default: 256)")
    parser.add_argument("--quality", type=positive, help="of the JPEG frames, up to 95 (default: 90)")
    parser.add_argument("--keyframes", type=positive, help="with --video: frames between two key frames (default: 16)")
    parser.add_argument("--crf", type=int, help="with --video: x264's quality, lower is better (default: 20)")
    parser.add_argument("--shard-size", dest="shard_videos", type=positive, help="videos of a shard (default: 128)")
    parser.add_argument("--reader", help="video reader: auto, decord, pyav, ... (default: auto)")
    parser.add_argument("--workers", type=as_field("data.workers", least=1), help="processes (default: one per core)")
    parser.add_argument("--retry-failed", action="store_true", help="try again what earlier calls could not read")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Pack, and say what was stored and what could not be read."""
    from m2clip.data.packs.pack import pack
    from m2clip.data.packs.settings import PackSettings

    names = ("short_side", "quality", "keyframes", "crf", "shard_videos", "reader")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for name, useless in (("quality", args.video), ("keyframes", not args.video), ("crf", not args.video)):
        if useless and name in given:
            raise InputError(f"--{name} says nothing {'with' if args.video else 'without'} --video")
    if args.frames is not None:
        given["frames"] = None if args.frames == "all" else args.frames
    settings = PackSettings("videos" if args.video else "frames", **given)
    annotations = read_list(args, args.classes)
    with progress_bar("packing", not args.json) as progress:
        options = {"workers": args.workers, "retry_failed": args.retry_failed}
        manifest = pack(annotations, args.output, settings, **options, progress=progress)
    if args.json:
        print_json(manifest)
        return
    counts = manifest["counts"]
    what = f", {counts['frames']} frames" if "frames" in counts else ""
    print_line(f"{args.output}: {counts['packed']} videos{what}, {manifest['bytes'] / 1e6:.1f} MB")
    for failure in manifest["failures"][:10]:
        print_line(f"not packed: {failure['error']}")
    if counts["failed"]:
        print_line(
            f"{counts['failed']} of {counts['videos']} videos could not be read; {args.output}/manifest.json lists "
            "them, --retry-failed tries them again"
        )


def _frames(text: str) -> int | str:
    return text if text == "all" else positive(text)
