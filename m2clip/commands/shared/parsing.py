"""Arguments that several commands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, get_args

from m2clip.choices import Crops, OnError, Precision, Sampling, Statistics, Transform
from m2clip.config_fields import RunConfig, settings_of
from m2clip.errors import InputError
from m2clip.sizes import sides
from m2clip.terminal import printable

DEFAULT_CLIP = "ViT-B-16-quickgelu"
FRAMES = 8  # of a clip for frozen CLIP
MOST = 1_000_000  # of what no field of the configuration bounds
# Options by the names that they had, which are refused with the new one.
RENAMED = {"--labels-file": "--classes", "--list-format": "--format", "--shard-videos": "--shard-size"}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and tells an error in one line."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        named.setdefault("allow_abbrev", False)
        named.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*positional, **named)

    def format_help(self) -> str:
        """The help; of a command that takes fields of the configuration, with these."""
        text = super().format_help()
        if not self.get_default("takes_overrides"):
            return text
        from m2clip.commands.shared.overrides import fields_help

        options, heading, example = text.rpartition("example:\n")
        return f"{options}{fields_help(options.split())}\n{heading}{example}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def unknown(words: Sequence[str]) -> str:
    """What is wrong with arguments that no parser knows."""
    renamed = [(word, RENAMED[word]) for word in (word.split("=")[0] for word in words) if word in RENAMED]
    if renamed:
        return "; ".join(f"{old} is now {new}" for old, new in renamed)
    return f"unrecognized arguments: {' '.join(words)}"


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
        "--precision", choices=get_args(Precision), default="fp32", help="of the forward pass (default: fp32)"
    )


def add_views(parser: argparse.ArgumentParser, sampled: bool = True) -> None:
    """How clips are drawn from a video; what is not given comes from the run.

    Args:
        parser: of the command.
        sampled: whether clips are drawn from a file, rather than frames taken as they come.
    """
    group = parser.add_argument_group("views of a video (default: as the run was trained; frozen CLIP: uniform frames)")
    if sampled:
        group.add_argument("--clips", type=as_field("eval.clips"), help="clips along time (default: the run's, else 1)")
    group.add_argument("--crops", type=crops, help="crops of a clip: 1, 3 or m2clip4 (default: the run's, else 1)")
    add_pictures(group, sampled)


def add_pictures(group: Any, sampled: bool = True) -> None:
    """Which frames of a video make a clip, and what happens to them; arguments as for `add_views`."""
    if sampled:
        group.add_argument(
            "--sampling", choices=get_args(Sampling), help="one frame per segment, or every stride-th frame"
        )
        group.add_argument("--stride", type=as_field("data.stride"), help="distance between frames of a dense clip")
        group.add_argument("--reader", help="video reader: auto, decord, pyav, ...")
    group.add_argument("--normalize", choices=get_args(Statistics), help="channel statistics")
    group.add_argument("--transform", choices=get_args(Transform), help="how frames are resized")


def add_list(
    parser: argparse.ArgumentParser,
    classes_help: str,
    classes_required: bool = False,
    several: bool = False,
    required: bool = True,
    scored: bool = True,
) -> None:
    """Which videos are meant and, where they are scored, what an unreadable one does and how they are read.

    Args:
        parser: of the command.
        classes_help: what --classes is for.
        classes_required: whether --classes cannot be left out.
        several: whether --list, --classes and --split take more than one.
        required: whether --list cannot be left out.
        scored: whether the videos are scored.
    """
    group = parser.add_argument_group("videos")
    more: Any = {"nargs": "+"} if several else {}
    group.add_argument(
        "--list", required=required, help="list file, or a folder with one sub-folder of videos per class", **more
    )
    group.add_argument("--classes", required=classes_required, help=classes_help, **more)
    add_reading(group, **more)
    add_mismatched(group)
    if not scored:
        return
    group.add_argument(
        "--on-error",
        choices=get_args(OnError),
        help="an unreadable video ends it, is left out, or counts as an error (default: the run's, else wrong)",
    )
    group.add_argument(
        "--batch-size", type=as_field("eval.batch_size"), help="views of a forward pass (default: the run's, else 16)"
    )
    group.add_argument("--workers", type=as_field("data.workers"), default=2, help="decoding processes (default: 2)")


def add_source(parser: argparse.ArgumentParser) -> None:
    """LIST, the class names in it, and how it is read."""
    parser.add_argument("list", metavar="LIST", help="list file, or a folder with one sub-folder of videos per class")
    parser.add_argument("--classes", help="label set or class file (default: the list's own names)")
    add_reading(parser)


def add_reading(group: Any, format: str = "annotation format", type: Any = str, **split: Any) -> None:
    """--root, --format and --split: how a list is read; `split` are further properties of --split."""
    group.add_argument("--root", help="folder that relative paths in the list start from (default: the list's own)")
    group.add_argument("--format", type=type, default="auto", help=f"{format} (default: auto)")
    group.add_argument("--split", help="which part of the list, for formats that have splits", **split)


def add_mismatched(parser: Any) -> None:
    """--allow-mismatched-folders."""
    parser.add_argument(
        "--allow-mismatched-folders",
        action="store_true",
        help="take videos that lie in the folder of another class than their label's (default: refuse the list)",
    )


def add_clip(parser: argparse.ArgumentParser) -> None:
    """--clip and --pretrained: which CLIP a run's adapters sit on, or which one is asked without adapters."""
    parser.add_argument(
        "--clip",
        help=f"open_clip architecture, or tiny, the bundled one (default: the run's; frozen CLIP: {DEFAULT_CLIP})",
    )
    parser.add_argument(
        "--pretrained", help="open_clip tag, or path of a local checkpoint (default: the run's; frozen CLIP: openai)"
    )
    parser.add_argument(
        "--tokenizer",
        help="of a CLIP with a tokenizer of its own: its name on the Hugging Face hub, or a folder that holds it",
    )


def add_frozen(parser: Any) -> None:
    """--frames and --image-size of frozen CLIP."""
    parser.add_argument(
        "--frames", type=as_field("data.num_frames"), help=f"frames of a clip for frozen CLIP (default: {FRAMES})"
    )
    add_image_size(parser, "frames for frozen CLIP")


def add_image_size(parser: Any, what: str) -> None:
    """--image-size of `what`."""
    parser.add_argument(
        "--image-size",
        type=picture_size,
        metavar="SIZE",
        help=f"of {what}, in pixels: 224, or height and width as in 224x320 (default: the CLIP's own)",
    )


def add_labels(parser: argparse.ArgumentParser) -> None:
    """--labels and --classes, one of them."""
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", nargs="+", metavar="NAME", help="class names to choose from (default: the run's)")
    labels.add_argument("--classes", help="the same as a bundled label set (k400, ...) or a class file")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: nothing but one JSON value on standard output."""
    parser.add_argument("--json", action="store_true", help="print one JSON value and nothing else")


def positive(text: str) -> int:
    """A whole number from 1 to `MOST`."""
    return _whole(text, 1, MOST)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0, None)


def as_field(name: str, least: int | None = None) -> Callable[[str], int]:
    """What reads a whole number within the range of a field of the configuration.

    Args:
        name: of the field, such as "eval.clips".
        least: the lowest value, where it is another than the field's.
    """
    setting = settings_of(RunConfig)[name]
    return partial(_whole, least=setting.at_least if least is None else least, most=setting.at_most)


def picture_size(text: str) -> tuple[int, int]:
    """(height, width), as "224" or "224x320"."""
    try:
        return sides(text, "the size")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """A time above 0."""
    return _real(text, math.inf, "a time in seconds above 0")


def not_negative_seconds(text: str) -> float:
    """A time of 0 or more."""
    return 0.0 if text in ("0", "0.0") else seconds(text)


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    return _real(text, 1.0, "a number above 0 and at most 1")


def crops(text: str) -> int | str:
    """One of the numbers and names of crops."""
    values: dict[str, int | str] = {str(value): value for value in get_args(Crops)}
    if text not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(values)}")
    return values[text]


def _real(text: str, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _whole(text: str, least: float | None, most: float | None) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if least is not None and value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    if most is not None and value > most:
        raise argparse.ArgumentTypeError(f"{value} is more than {most}")
    return value
