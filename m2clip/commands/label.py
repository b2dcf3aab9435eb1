"""`m2clip label`: name what happens in each of very many videos."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.at_scale import RESTART, add_model, add_videos, add_work
from m2clip.commands.parsing import add_command, positive

EXAMPLE = f"""  m2clip label videos/ out --run runs/k400
  m2clip label list.txt out --labels juggling "riding a horse" cooking
  torchrun --nproc-per-node 8 -m m2clip.cli label list.txt out --run runs/k400 --precision fp16
  m2clip label list.txt out --run runs/k400 --ray --address auto

{RESTART}"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "label", run, "Name what happens in each video of a long list", EXAMPLE)
    add_videos(parser)
    add_model(parser)
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", nargs="+", help="class names to choose from (default: the run's own)")
    labels.add_argument("--labels-file", help="bundled label set (k400, ...) or class file")
    parser.add_argument("--top", type=positive, default=5, help="how many classes to store (default: 5)")
    add_work(parser, ("jsonl", "parquet"))


def run(args: argparse.Namespace) -> None:
    """Label, and report."""
    from m2clip import at_scale
    from m2clip.commands import models
    from m2clip.commands.at_scale import job, report, run_folder
    from m2clip.commands.output import progress_bar
    from m2clip.data.label_sets import load_class_names
    from m2clip.errors import InputError

    folder = run_folder(args)
    names = args.labels or (load_class_names(args.labels_file) if args.labels_file else None)
    if folder is None and names is None:
        raise InputError("which classes? Give --labels, --labels-file, or a run folder with --run")
    model = models.open_run(folder, args) if folder else models.open_frozen(args, names or [], args.frames)
    if names is not None and names != model.class_names:
        model.set_class_names(names)
    work = job(args, model)
    with progress_bar("labelling", not args.json and work["executor"].process[0] == 0) as progress:
        summary = at_scale.label(model, top=args.top, progress=progress, **work)
    report(args, summary)
