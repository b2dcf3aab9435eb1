"""What `fewshot` and `base-to-novel` share: configurations to compare, and the videos to compare them on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import print_line, progress_bar
from m2clip.commands.shared.overrides import add_overrides, join_overrides
from m2clip.commands.shared.parsing import add_json, positive
from m2clip.data import BUILT_IN

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.protocols.runs import Contender, Reporter

OVERRIDES = """any field of the configurations can be given once for all of them as --section.field
value; a call that was stopped resumes where it stopped, and what is finished is not repeated."""


def add_contenders(parser: argparse.ArgumentParser, output: str, seeds: Sequence[int]) -> None:
    """--config, --seeds, --output, --built-in, --device, --json, and any field of the configurations."""
    parser.add_argument(
        "--config",
        nargs="+",
        required=True,
        metavar="[NAME=]CONFIG",
        help="methods to compare: YAML files or bundled recipes, each with a name for tables",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(seeds),
        help=f"of the draw and of training (default: {' '.join(map(str, seeds))})",
    )
    parser.add_argument("--output", default=output, help=f"folder for lists, runs, table and plot (default: {output})")
    group = parser.add_argument_group("videos (default: data.train, data.val and data.classes of the configurations)")
    group.add_argument("--built-in", choices=BUILT_IN, help="render a built-in data set into OUTPUT/videos and take it")
    group.add_argument("--train-clips", type=positive, default=32, help="rendered for each base class (default: 32)")
    group.add_argument("--val-clips", type=positive, default=10, help="rendered for each class (default: 10)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(parser)
    add_overrides(parser)


def read_contenders(args: argparse.Namespace) -> list[Contender]:
    """The named configurations with the overrides applied; built-in videos are rendered.

    Raises:
        InputError: a configuration that cannot be read, or videos that cannot be rendered.
    """
    from m2clip.config import load_config
    from m2clip.protocols.runs import Contender

    overrides = join_overrides(args.overrides)
    found = []
    for text in args.config:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = "", text
        found.append(Contender(name or Path(path).stem, load_config(path, overrides)))
    if args.built_in:
        _use_built_in(args, found)
    return found


def reporter(args: argparse.Namespace) -> Reporter:
    """Lines and progress bars, or nothing with --json."""
    from m2clip import distributed
    from m2clip.protocols.runs import Reporter

    shown = not args.json
    return Reporter(
        quiet=not shown,
        say=print_line if shown else lambda line: None,
        bar=lambda what: progress_bar(what, shown and distributed.is_main()),
    )


def videos_folder(args: argparse.Namespace) -> Path:
    """Where --built-in renders."""
    return Path(args.output) / "videos"


def spread(found: Mapping[str, Any]) -> str:
    """Mean and deviation in per cent."""
    mean, deviation = found["mean"], found["std"]
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def main_process() -> bool:
    """Whether this process prints; the process group is gone by now, torchrun's environment still tells."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _use_built_in(args: argparse.Namespace, contenders: Sequence[Contender]) -> None:
    from m2clip import distributed
    from m2clip.data.built_in.rendered_set import render_built_in
    from m2clip.train.checks import check_model

    device = distributed.pick_device(args.device)
    for contender in contenders:
        check_model(contender.config, device)
    folder = videos_folder(args)
    # Of several processes the first renders; the others wait in the first collective of the protocol.
    if main_process():
        clips = {"train": args.train_clips, "val": args.val_clips}
        with progress_bar("rendering videos", not args.json) as progress:
            render_built_in(args.built_in, folder, clips, progress=progress)
    distributed.init(device=args.device)
    distributed.barrier()
    for contender in contenders:
        use_rendered(contender.config, folder, "base_train.txt", "base_val.txt", "base_classes.csv")


def use_rendered(config: RunConfig, folder: Path, train: str, val: str, classes: str) -> None:
    """Let a configuration name lists of a folder of rendered videos."""
    data = config.data
    data.train, data.val, data.classes = (str(folder / name) for name in (train, val, classes))
    data.root, data.format, data.train_split, data.val_split = str(folder), "list", None, None
    data.flip = False  # class names tell left from right
