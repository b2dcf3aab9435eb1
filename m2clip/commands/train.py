"""`m2clip train`: train on a folder of videos or by a recipe, or resume such a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared.contenders import main_process
from m2clip.commands.shared.output import print_line, print_result, progress_bar
from m2clip.commands.shared.overrides import add_overrides, join_overrides, take_word
from m2clip.commands.shared.parsing import add_command, add_json, seconds
from m2clip.errors import InputError

EXAMPLE = """  m2clip train videos/
  m2clip train videos.csv --clip ViT-B-16-quickgelu --minutes 60 --output runs/mine
  m2clip train --config m2clip_k400_b16_8f --data.train train.txt --data.val val.txt --output runs/k400
  m2clip train videos/ --init runs/k400
  m2clip train --config my_run.yaml --optim.lr 5e-4
  torchrun --nproc-per-node 8 -m m2clip.cli train --config m2clip_k400_b16_8f

VIDEOS is a folder with one sub-folder per class, a folder of train/CLASS/ and val/CLASS/, or a
list: a csv of video,label, JSON lines, or any other format. It needs no recipe and no list of
validation. The same command, given again, resumes a run that was interrupted."""
AUTO = "auto"


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "train", run, "Train on a folder of videos or by a recipe, or resume an interrupted run", EXAMPLE
    )
    parser.usage = "m2clip train VIDEOS | --config CONFIG  [options]"
    parser.add_argument("--config", help="YAML file, bundled recipe, or run folder, in place of VIDEOS")
    parser.add_argument("--clip", help="open_clip architecture, or tiny, the bundled one: the field model.clip")
    parser.add_argument("--method", help="m2clip, st_adapter, aim or msta: the field model.method")
    parser.add_argument(
        "--init",
        metavar="RUN",
        help="run folder, checkpoint or saved adapters to start from; CLIP, frames and options that have to agree are "
        "its own, other classes get a new classifier",
    )
    parser.add_argument("--minutes", type=seconds, help="the longest that training on VIDEOS may take")
    parser.add_argument("--fresh", action="store_true", help="refuse an output folder that already holds a run")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(parser)
    add_overrides(parser)
    parser.set_defaults(precision="fp32")


def run(args: argparse.Namespace) -> None:
    """Train and say where the run is."""
    word, rest = take_word(args.overrides)
    overrides = [*_short_forms(args), *join_overrides(rest)]
    if word is None and args.config is None:
        raise InputError("what is trained on? Give a folder or list of videos, or --config with a recipe")
    if word is not None and args.config is not None:
        raise InputError(f"{word!r} belongs to no option: give videos, or --config with a recipe and --data.train")
    if args.init is not None and any(text.startswith("model.init=") for text in overrides):
        raise InputError("--init and --model.init both say what to start from: give one of them")
    config = args.config or (word if _is_config(str(word)) else None)
    if config == AUTO:
        lists = [text.partition("=")[2] for text in overrides if text.startswith("data.train=")]
        if not lists:
            raise InputError("the recipe auto is for videos of your own: write m2clip train VIDEOS")
        word, config = lists[-1], None
        overrides = [text for text in overrides if not text.startswith("data.train=")]
    if config is None:
        _train_on_videos(args, str(word), overrides)
        return
    from m2clip.config import load_config
    from m2clip.train import trainer as train
    from m2clip.train.starting import check_method, fields_to_agree

    if args.minutes is not None:
        raise InputError("--minutes is for VIDEOS: the epochs of a recipe are --optim.epochs")
    if args.init is not None:
        check_method(args.init, load_config(config, overrides).model.method, "--method" if args.method else config)
        given = {text.partition("=")[0] for text in overrides}
        overrides = [*fields_to_agree(args.init, given, whole=False), *overrides, f"model.init={args.init}"]
    folder = train.run(load_config(config, overrides), resume=not args.fresh, device=args.device, quiet=args.json)
    report_run(args, folder, f"eval {folder} --list ...")


def _short_forms(args: argparse.Namespace) -> list[str]:
    """--clip and --method as fields; a CLIP that is named has its published weights, unless others are given."""
    fields = [] if args.clip is None else [f"model.clip={args.clip}", "model.pretrained=openai"]
    return fields + ([] if args.method is None else [f"model.method={args.method}"])


def _is_config(word: str) -> bool:
    """Whether a word names a recipe, a configuration file or a run; otherwise it must be there, as videos.

    Raises:
        InputError: it is nothing at all.
    """
    from m2clip.config import bundled_configs

    path, recipes = Path(word), bundled_configs()
    if word in recipes or path.suffix.lower() in (".yaml", ".yml") or (path / "config.yaml").is_file():
        return True
    if not path.exists():
        raise InputError(f"{word!r} is neither a folder or list of videos nor a recipe ({', '.join(recipes)})")
    return False


def _train_on_videos(args: argparse.Namespace, videos: str, overrides: list[str]) -> None:
    from m2clip import distributed
    from m2clip.commands.shared.run_report import report_videos
    from m2clip.protocols.own_videos import train_on_videos

    device = distributed.init(device=args.device)
    try:
        with progress_bar("looking at videos", main_process() and not args.json) as progress:
            config, lists, plan = train_on_videos(
                videos,
                overrides,
                minutes=args.minutes,
                init=args.init,
                device=device,
                resume=not args.fresh,
                say=None if args.json else print_line,
                progress=progress,
            )
        report_videos(args, device, config, lists, plan)
    finally:
        distributed.shutdown()


def report_run(args: argparse.Namespace, folder: Path, scoring: str) -> None:
    """Draw the curves of a run, and say in one process where it is and which command scores it."""
    from m2clip.plots.pictures import training_curves
    from m2clip.train.log import METRICS

    if not main_process():
        return
    if (folder / METRICS).is_file():
        training_curves(folder / METRICS, folder / "curves.png")
    print_result(args, {"run": str(folder)}, f"the run is in {folder}: m2clip {scoring} scores it")
