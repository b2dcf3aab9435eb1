"""`m2clip demo`: the method at work on built-in videos."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.parsing import add_command

EXAMPLE = "  m2clip demo --output demo"


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "demo", run, "Train on built-in videos and compare with frozen CLIP, without a download", EXAMPLE
    )
    parser.add_argument("--output", default="demo", help="folder for videos, run and picture (default: demo)")


def run(args: argparse.Namespace) -> None:
    """Run the demo."""
    from m2clip.demo import run_demo

    run_demo(args.output)
