"""`m2clip demo`: the method at work on built-in videos."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.shared.output import print_json, print_line
from m2clip.commands.shared.parsing import add_command, add_json

EXAMPLE = "  m2clip demo --output demo"


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "demo", run, "Train on built-in videos and compare with frozen CLIP, without a download", EXAMPLE
    )
    parser.add_argument("--output", default="demo", help="folder for videos, run and picture (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of videos, weights and order of training (default: 0)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the demo."""
    from m2clip.protocols.demo import run_demo

    def say(text: str) -> None:
        for line in text.split("\n"):
            print_line(line)

    results = run_demo(args.output, seed=args.seed, say=None if args.json else say)
    if args.json:
        print_json(results)
