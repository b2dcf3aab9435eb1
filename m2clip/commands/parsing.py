"""Arguments that several commands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

DEFAULT_CLIP = "ViT-B-16-quickgelu"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and tells an error in one line."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        named.setdefault("allow_abbrev", False)
        named.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*positional, **named)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    """A sub-command with its help line, its example and the function that does its work."""
    parser = commands.add_parser(
        name,
        help=description[0].lower() + description[1:],
        description=f"{description}.",
        epilog=f"example:\n{example}",
    )
    parser.set_defaults(run=run)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --precision."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the forward pass (default: fp32)"
    )


def add_views(parser: argparse.ArgumentParser) -> None:
    """How clips are drawn from a video; what is not given comes from the run."""
    group = parser.add_argument_group("views of a video (default: as the run was trained; frozen CLIP: uniform frames)")
    group.add_argument("--clips", type=positive, help="clips along time (default: the run's, else 1)")
    group.add_argument("--crops", type=crops, help="crops of a clip: 1, 3 or m2clip4 (default: the run's, else 1)")
    group.add_argument("--sampling", choices=("uniform", "dense"), help="one frame a segment, or every stride-th frame")
    group.add_argument("--stride", type=positive, help="distance between frames of a dense clip")
    group.add_argument("--normalize", choices=("clip", "imagenet"), help="channel statistics")
    group.add_argument("--reader", help="video reader: auto, decord, pyav, ...")


def add_list(
    parser: argparse.ArgumentParser,
    classes_help: str,
    classes_required: bool = False,
    several: bool = False,
    required: bool = True,
    scored: bool = True,
) -> None:
    """Which videos are meant and, where they are scored, what an unreadable one does and how they are read.

    several: --list, --classes and --split take more than one; required: --list cannot be left out.
    """
    group = parser.add_argument_group("videos")
    more: Any = {"nargs": "+"} if several else {}
    group.add_argument(
        "--list", required=required, help="list file, or a folder with one sub-folder of videos a class", **more
    )
    group.add_argument("--classes", required=classes_required, help=classes_help, **more)
    group.add_argument("--root", help="folder that relative paths in the list start from (default: the list's own)")
    group.add_argument("--format", default="auto", help="annotation format (default: auto)")
    group.add_argument("--split", help="which part of the list, for formats that have splits", **more)
    if not scored:
        return
    group.add_argument(
        "--on-error",
        choices=("raise", "skip", "wrong"),
        help="an unreadable video ends it all, is left out, or counts as an error (default: the run's, else wrong)",
    )
    group.add_argument("--batch-size", type=positive, help="views of a forward pass (default: the run's, else 16)")
    group.add_argument("--workers", type=not_negative, default=2, help="decoding processes (default: 2)")


def add_clip(parser: argparse.ArgumentParser) -> None:
    """--clip and --pretrained: which CLIP a run's adapters sit on, or which one is asked without adapters."""
    parser.add_argument(
        "--clip",
        help=f"open_clip architecture, or tiny, the bundled one (default: the run's; frozen CLIP: {DEFAULT_CLIP})",
    )
    parser.add_argument(
        "--pretrained", help="open_clip tag, or path of a local checkpoint (default: the run's; frozen CLIP: openai)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: nothing but one JSON value on standard output."""
    parser.add_argument("--json", action="store_true", help="print one JSON value and nothing else")


def positive(text: str) -> int:
    """A whole number from 1."""
    return _at_least(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _at_least(text, 0)


def crops(text: str) -> int | str:
    """1, 3 or "m2clip4"."""
    values: dict[str, int | str] = {"1": 1, "3": 3, "m2clip4": "m2clip4"}
    if text not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of 1, 3, m2clip4")
    return values[text]


def join_overrides(rest: Sequence[str]) -> list[str]:
    """ "--a.b 1 --c=2" as ["a.b=1", "c=2"].

    Raises:
        InputError: a value without a name or a name without a value.
    """
    from m2clip.errors import InputError

    joined: list[str] = []
    waiting: str | None = None
    for word in rest:
        if waiting is not None:
            joined.append(f"{waiting}={word}")
            waiting = None
        elif not word.startswith("--"):
            raise InputError(f"{word!r} belongs to no option: write --section.field value, such as --optim.lr 5e-4")
        elif "=" in word:
            joined.append(word[2:])
        else:
            waiting = word[2:]
    if waiting is not None:
        raise InputError(f"--{waiting} has no value: write --section.field value, such as --optim.lr 5e-4")
    return joined


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value
