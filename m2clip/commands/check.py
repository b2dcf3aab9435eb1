"""`m2clip check`: find what is wrong with a list of videos before training does."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from m2clip.commands.parsing import add_command, add_json, positive

if TYPE_CHECKING:
    from m2clip.check import Report

EXAMPLE = """  m2clip check train.txt --classes classes.csv
  m2clip check videos/ --decode full --output checked
  m2clip check k400/train.csv --root k400/videos --keep duplicate
  m2clip train --config m2clip_k400_b16_8f --data.train train.check/clean.txt --data.classes train.check/classes.csv

A call that was interrupted, whatever it was, goes on where it stopped when it is repeated. The list itself is never
changed. Exit code: 0 nothing is wrong, 1 problems were found (they are in the report), 2 bad input."""
_NAMED = 3


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "check", run, "Find unreadable, damaged, repeated and mislabelled videos", EXAMPLE)
    parser.add_argument("list", metavar="LIST", help="list file, or a folder with one sub-folder of videos a class")
    parser.add_argument("--classes", help="label set or class file (default: the list's own names)")
    parser.add_argument("--root", help="folder that relative paths in the list start from (default: the list's own)")
    parser.add_argument("--format", default="auto", help="annotation format (default: auto)")
    parser.add_argument("--split", help="which part of the list, for formats that have splits")
    parser.add_argument(
        "--output", help="folder for report.json, clean.txt and classes.csv (default: NAME.check beside the list)"
    )
    parser.add_argument(
        "--decode",
        choices=("none", "count", "sampled", "full"),
        default="sampled",
        help="open no file; open it and count frames; also decode the frames of a clip; or all (default: sampled)",
    )
    parser.add_argument("--frames", type=positive, default=8, help="frames of that clip (default: 8)")
    parser.add_argument("--reader", default="auto", help="video reader: auto, decord, pyav, ... (default: auto)")
    parser.add_argument("--seconds", type=positive, default=60, help="most that a video may take (default: 60)")
    parser.add_argument("--memory", type=positive, default=4096, help="most memory of a decoder, in MB (default: 4096)")
    parser.add_argument(
        "--keep", nargs="+", default=(), metavar="PROBLEM", help="problems that the clean list may have"
    )
    parser.add_argument("--workers", type=positive, help="videos decoded at a time (default: one a core)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Check, write the report and the clean list, and end with 1 where something is wrong."""
    from m2clip.check import check_list
    from m2clip.check_files import Depth
    from m2clip.commands.output import print_json, progress_bar
    from m2clip.data.isolated import DecoderLimits

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
        _print(report)
    if report.problems:
        sys.stdout.flush()
        sys.exit(1)


def _print(report: Report) -> None:
    from m2clip.check import PROBLEMS
    from m2clip.commands.output import console, print_line, table

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
