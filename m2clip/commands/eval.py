"""`m2clip eval`: score a run on a list of videos with the classes it was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.parsing import add_clip, add_command, add_device, add_json, add_list, add_views

EXAMPLE = """  m2clip eval runs/k400 --list val.txt --clips 4 --crops 3
  torchrun --nproc-per-node 8 -m m2clip.cli eval runs/k400 --list val.txt --precision fp16"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "eval", run, "Score a run on a list of videos, with the classes it was trained on", EXAMPLE
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    add_list(parser, "label set or class file to check against the run's classes (default: the run's)")
    add_views(parser)
    parser.add_argument("--with-frozen", action="store_true", help="show frozen CLIP beside it")
    parser.add_argument("--output", help="folder for the JSON and PNG files (default: the run folder)")
    add_clip(parser)
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the files."""
    from m2clip import distributed
    from m2clip.commands import models
    from m2clip.commands.scoring import score
    from m2clip.data.label_sets import load_class_names

    folder = Path(args.run_folder)
    device = distributed.init(device=args.device)
    try:
        model = models.open_run(folder, args, load_class_names(args.classes) if args.classes else None)
        annotations = models.read_list(args, model.class_names)
        candidates = [(models.display_name(model), model)]
        if args.with_frozen:
            candidates.append(("frozen CLIP", models.frozen_twin(model)))
        config = models.run_config(args, folder)
        output = Path(args.output) if args.output else folder
        score(args, device, config, annotations, candidates, model.class_names, output, f"eval_{Path(args.list).stem}")
    finally:
        distributed.shutdown()
