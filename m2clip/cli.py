"""The program `m2clip`: one sub-command for each thing a user does."""

from __future__ import annotations

# Little is imported here: an interrupt before `main` is not told in one line.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType

# Imported only to build their parsers; none of them imports torch before its command runs.
GROUPS = {
    "use a model": ("predict", "stream", "label", "features", "convert"),
    "train": ("demo", "train", "episodes"),
    "compare": ("eval", "compare", "zeroshot", "fewshot", "base-to-novel"),
    "data": ("check", "pack", "describe"),
    "this machine": ("info", "selfcheck", "tune"),
}

EPILOG = """examples:
  m2clip demo                                        see what the method does, in minutes, without a download
  m2clip train videos/                               train on your own videos, one sub-folder per class
  m2clip train --config m2clip_k400_b16_8f           train a published recipe
  m2clip eval runs/k400 --list val.txt               score a run
  m2clip predict clip.mp4 --labels juggling cooking  ask CLIP about a video

`m2clip COMMAND --help` shows the arguments of a command, with an example."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    import importlib
    from argparse import SUPPRESS

    from m2clip import __version__
    from m2clip.commands.shared.parsing import Parser

    parser = Parser(
        prog="m2clip",
        usage="m2clip COMMAND ...",
        description="Turn CLIP into a video action recogniser: train small adapters, evaluate, predict.",
    )
    parser.add_argument("--version", action="version", version=f"m2clip {__version__}")
    # argparse lists commands without groups: the epilog lists them with these.
    commands = parser.add_subparsers(prog="m2clip", dest="command", metavar="COMMAND", required=True, help=SUPPRESS)
    for name in (name for names in GROUPS.values() for name in names):
        importlib.import_module(f"m2clip.commands.{name.replace('-', '_')}").add_parser(commands)
    groups = [
        "\n".join([f"{title}:", *(f"  {name:<15}{commands.choices[name].description}" for name in names)])
        for title, names in GROUPS.items()
    ]
    parser.epilog = "\n\n".join([*groups, EPILOG])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0; 2 for bad input; 3 where another process of the group, or the source of a stream, is gone; 130 when interrupted,
    143 where SIGTERM ended training. What is not 0 is told in one line.

    Args:
        arguments: the command line without the program's name; None takes this process's.
    """
    first = os.environ.get("RANK", "0") == "0"  # all processes of a group are stopped together: one tells it
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        from m2clip.terminal import notices, prepare_streams

        prepare_streams()
        parser = build_parser()
        parsed, rest = parser.parse_known_args(arguments)
        # Commands that train take options of the configuration as well.
        if rest and not getattr(parsed, "takes_overrides", False):
            from m2clip.commands.shared.parsing import unknown

            parser.error(unknown(rest))
        parsed.overrides = rest
        with notices(first):
            return _run(parsed)
    except KeyboardInterrupt as stop:
        if first:
            from m2clip.terminal import tell

            tell(str(stop) or "interrupted")
        return getattr(stop, "exit_code", 130)


def _run(parsed: argparse.Namespace) -> int:
    """Run a command whose arguments were understood; tells all but interrupts and defects in one line."""
    from m2clip.errors import InputError, LostProcessError, LostSourceError
    from m2clip.terminal import silence, tell

    try:
        if "" in (getattr(parsed, "output", None), getattr(parsed, "target", None)):
            raise InputError("the output is empty: name a file or a folder")
        parsed.run(parsed)
        sys.stdout.flush()
    except InputError as error:
        tell(str(error))
        return 2
    except LostProcessError as error:
        if not error.silent:
            tell(str(error))
        return error.exit_code
    except LostSourceError as error:
        tell(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (as in `m2clip info | head`).
        silence(sys.stdout)
        return 1
    except OSError as error:
        tell(f"{error.filename or 'output'}: {error.strerror or error}")
        try:
            sys.stdout.flush()
        except OSError:
            silence(sys.stdout)
        return 2
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but while modules are imported the end: libraries then swallow it, or tell it at length."""
    at = frame
    while at is not None:
        if at.f_code.co_filename == "<frozen importlib._bootstrap>":
            if os.environ.get("RANK", "0") == "0":
                os.write(2, b"m2clip: interrupted\n")
            os._exit(130)
        at = at.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
