"""`m2clip label`: name what happens in each of very many videos."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.shared import models
from m2clip.commands.shared.long_lists import RESTART, add_model, add_videos, add_work
from m2clip.commands.shared.output import progress_bar
from m2clip.commands.shared.parsing import add_command, add_labels, positive
from m2clip.files.folders import check_apart

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
    add_labels(parser)
    parser.add_argument("--top", type=positive, default=5, help="how many classes to store (default: 5)")
    add_work(parser, ("jsonl", "parquet"))


def run(args: argparse.Namespace) -> None:
    """Label, and report."""
    from m2clip import at_scale
    from m2clip.commands.shared.long_lists import inputs, job, report, run_folder

    check_apart(args.output, args.list, option="OUTPUT")
    folder = run_folder(args)
    names, given = models.given_names(args, folder), inputs(args)
    model = models.open_labelled(args, folder, names)
    work = job(args, model, given)
    with progress_bar("labelling", not args.json and work["executor"].process[0] == 0) as progress:
        summary = at_scale.label(model, top=args.top, progress=progress, **work)
    report(args, summary)
