"""What `label` and `features` share: which videos, which model, how the work is spread, and the report at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.output import print_failures, print_json, print_line
from m2clip.commands.shared.parsing import (
    add_clip,
    add_device,
    add_frozen,
    add_json,
    add_reading,
    add_views,
    as_field,
    positive,
)
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.at_scale import LocalProcess, RayCluster, Summary
    from m2clip.data.clips import ClipSettings

RESTART = """a stopped call resumes when it is given again, on one process, under torchrun or on Ray;
several at once on one OUTPUT share the work."""


def add_videos(parser: argparse.ArgumentParser) -> None:
    """LIST and OUTPUT, and what concerns them."""
    parser.add_argument("list", metavar="LIST", help="file of paths, folder of videos, pack, or any annotation format")
    parser.add_argument("output", metavar="OUTPUT", help="folder for the results")
    group = parser.add_argument_group("videos")
    add_reading(group, "paths, or an annotation format", _list_format)
    group.add_argument(
        "--on-error",
        choices=("skip", "raise"),
        default="skip",
        help="an unreadable video is listed with the reason, or ends the command (default: skip)",
    )
    group.add_argument("--retry-failed", action="store_true", help="try the videos again that could not be read before")
    group.add_argument(
        "--no-isolate",
        action="store_true",
        help="decode without a process around the decoder: a little faster, but a video may crash it",
    )


def _list_format(text: str) -> str:
    if text in ("jsonl", "parquet", "safetensors"):
        raise argparse.ArgumentTypeError(f"is that of LIST; for the files that are written: --output-format {text}")
    return text


def add_model(parser: argparse.ArgumentParser) -> None:
    """--run, or frozen CLIP."""
    group = parser.add_argument_group("model")
    group.add_argument("--run", dest="run_folder", help="run folder (default: frozen CLIP)")
    add_clip(parser)
    add_frozen(parser)
    add_views(parser)


def add_work(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """How the work is cut up, stored and spread."""
    group = parser.add_argument_group("work")
    group.add_argument(
        "--output-format", choices=formats, default=formats[0], help=f"of the files (default: {formats[0]})"
    )
    group.add_argument("--shard-size", type=positive, default=256, help="videos of a file (default: 256)")
    group.add_argument(
        "--batch-size", type=as_field("eval.batch_size"), help="views of a forward pass (default: the run's, else 16)"
    )
    group.add_argument("--workers", type=as_field("data.workers"), default=2, help="decoding processes (default: 2)")
    ray = parser.add_argument_group("Ray (pip install 'm2clip[ray]')")
    ray.add_argument("--ray", action="store_true", help="decode and compute on Ray Data, started here for this call")
    ray.add_argument("--address", help='join this Ray cluster instead; "auto" finds the one on this machine')
    ray.add_argument(
        "--actors", type=positive, help="most copies of the model (default: one per GPU, or every 2nd CPU)"
    )
    add_device(parser)
    add_json(parser)


def inputs(args: argparse.Namespace) -> dict[str, Any]:
    """What a job needs besides its model, which takes longer to load.

    Raises:
        InputError: options that exclude each other, no such list, Ray is not installed.
    """
    from m2clip.at_scale import read_videos

    executor = _executor(args)
    return {
        "videos": read_videos(args.list, root=args.root, format=args.format, split=args.split),
        "executor": executor,
    }


def job(args: argparse.Namespace, model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `m2clip.at_scale.label` and `features` have in common; `given` are those of `inputs`."""
    from dataclasses import replace

    from m2clip.at_scale import JobSettings
    from m2clip.train.setup import clip_settings

    config = models.run_config(args, run_folder(args))
    views: ClipSettings = replace(clip_settings(config, model), isolate=not args.no_isolate)
    settings = JobSettings(args.shard_size, config.eval.batch_size, args.precision, args.on_error, args.retry_failed)
    return {
        **given,
        "output": args.output,
        "format": args.output_format,
        "views": views,
        "settings": settings,
    }


def run_folder(args: argparse.Namespace) -> Path | None:
    """--run as a path."""
    return Path(args.run_folder) if args.run_folder else None


def report(args: argparse.Namespace, summary: Summary | None) -> None:
    """Print what was done; nothing in a process that is not the first."""
    if summary is None:
        return
    if args.json:
        print_json(summary.to_dict())
        return
    failed = len(summary.failures)
    print_line(f"{summary.videos - failed} of {summary.videos} videos done, {failed} failed")
    print_failures(summary.failures, f"{summary.folder}/manifest.json")
    print_line(f"written: {summary.table}, {len(summary.parts)} files in {summary.folder}/parts")


def _executor(args: argparse.Namespace) -> LocalProcess | RayCluster:
    from m2clip.at_scale import LocalProcess, RayCluster

    if not args.ray:
        given = [name for name in ("address", "actors") if getattr(args, name) is not None]
        if given:
            raise InputError(f"--{given[0]} is about Ray: add --ray")
        return LocalProcess(args.workers, args.device)
    if args.device is not None:
        raise InputError("--device is not for Ray, which gives every actor a GPU where the cluster has some")
    return RayCluster(args.address, args.actors)
