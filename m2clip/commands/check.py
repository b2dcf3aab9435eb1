"""`m2clip check`: find what is wrong with a list of videos before training does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import console, print_json, print_line, progress_bar, table
from m2clip.commands.shared.parsing import add_command, add_json, add_source, as_field, positive

if TYPE_CHECKING:
    from m2clip.data.check.lists import Report

EXAMPLE = """  m2clip check train.txt --classes classes.csv
  m2clip check videos/ --decode full --output checked
  m2clip check k400/train.csv --root k400/videos --keep duplicate
  m2clip train --config m2clip_k400_b16_8f --data.train train.check/clean.txt --data.classes train.check/classes.csv

A call that was interrupted, whatever it was, resumes where it stopped when it is repeated. The list itself is never
changed. Exit code: 0 where every problem found is one of --keep, 1 where there are others, 2 for bad input."""
_NAMED = 3


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "check", run, "Find unreadable, damaged, repeated and mislabelled videos", EXAMPLE)
    add_source(parser)
    parser.add_argument(
        "--output", help="folder for report.json, clean.txt and classes.csv (default: NAME.check beside the list)"
    )
    parser.add_argument(
        "--decode",
        choices=("none", "count", "sampled", "full"),
        default="sampled",
        help="open no file; open it and count frames; also decode the frames of a clip; or all (default: sampled)",
    )
    parser.add_argument(
        "--frames", type=as_field("data.num_frames"), default=8, help="frames of that clip (default: 8)"
    )
    parser.add_argument("--reader", default="auto", help="video reader: auto, decord, pyav, ... (default: auto)")
    parser.add_argument("--seconds", type=positive, default=60, help="most that a video may take (default: 60)")
    parser.add_argument("--memory", type=positive, default=4096, help="most memory of a decoder, in MB (default: 4096)")
    parser.add_argument(
        "--keep", nargs="+", default=(), metavar="PROBLEM", help="problems that the clean list may have"
    )
    parser.add_argument(
        "--workers", type=as_field("data.workers", least=1), help="videos decoded at a time (default: one per core)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Check, write the report and the clean list, and end with 1 where a video is not good."""
    from m2clip.data.check.files import Depth
    from m2clip.data.check.lists import check_list
    from m2clip.data.video.isolated import DecoderLimits

    depth = Depth(args.decode, args.frames, args.reader, DecoderLimits(args.seconds, args.memory << 20))
    with progress_bar("checking", not args.json) as progress:
        report = check_list(
            args.list,
            args.output,
            root=args.root,
            format=args.format,
            class_names=args.classes,
            split=args.split,
            depth=depth,
            keep=args.keep,
            workers=args.workers,
            progress=progress,
        )
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report, args.keep)
    if any(problem.kind not in args.keep for problem in report.problems):
        sys.stdout.flush()
        sys.exit(1)


def _print(report: Report, kept: Collection[str]) -> None:
    from m2clip.data.check.lists import PROBLEMS

    rows = [(kind, meaning, str(report.counts[kind])) for kind, meaning in PROBLEMS.items()]
    console().print(table(("problem", "meaning", "videos"), rows, numbers=1))
    for kind in PROBLEMS:
        found = [problem for problem in report.problems if problem.kind == kind]
        for problem in found[:_NAMED]:
            message = problem.message.removeprefix(f"{problem.path}: ")
            print_line(f"{kind}: {problem.path} ({problem.where}): {message}")
        if len(found) > _NAMED:
            print_line(f"{kind}: {len(found) - _NAMED} more in the report")
    print_line(f"{report.clean} of {report.videos} videos are good: {report.clean_list or 'no list was written'}")
    if usable := [kind for kind in ("duplicate", "mislabelled") if report.counts[kind] and kind not in kept]:
        print_line(f"copies and labels that are meant so: --keep {' '.join([*kept, *usable])}")
