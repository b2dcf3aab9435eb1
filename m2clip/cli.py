"""The program `m2clip`: one sub-command for each thing a user does."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from m2clip.commands.parsing import Parser
from m2clip.errors import InputError, LostProcessError

# Imported only to build their parsers; none of them imports torch before its command runs.
COMMANDS = (
    *("demo", "train", "eval", "zeroshot", "fewshot", "base-to-novel", "episodes", "predict", "convert"),
    *("check", "label", "features", "pack", "describe", "info", "selfcheck", "tune"),
)
EPILOG = """examples:
  m2clip demo                                        see what the method does, in minutes, without a download
  m2clip train --config m2clip_k400_b16_8f           train a published recipe
  m2clip eval runs/k400 --list val.txt               score a run
  m2clip predict clip.mp4 --labels juggling cooking  ask CLIP about a video

`m2clip COMMAND --help` shows the arguments of a command, with an example."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    from m2clip import __version__

    parser = Parser(
        prog="m2clip",
        description="Turn CLIP into a video action recogniser: train small adapters, evaluate, predict.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"m2clip {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"m2clip.commands.{name.replace('-', '_')}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0; 2 for bad input; 3 where another process of the group is gone; 130 when interrupted, 143 where SIGTERM ended
    training. What is not 0 is told in one line.

    Args:
        arguments: the command line without the program's name; None takes this process's.
    """
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # Commands that train take arguments that the configuration, not this parser, knows.
    if rest and not getattr(parsed, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.overrides = rest
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except InputError as error:
        print(f"m2clip: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except LostProcessError as error:
        if not error.silent:
            print(f"m2clip: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        # All processes of a group are stopped together.
        if os.environ.get("RANK", "0") == "0":
            print(f"m2clip: {stop if str(stop) else 'interrupted'}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except BrokenPipeError:
        # The reader of our output is gone (as in `m2clip info | head`): what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
