"""`m2clip eval`: score a run on a list of videos with the classes it was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared import models
from m2clip.commands.shared.parsing import add_clip, add_command, add_device, add_json, add_list, add_views
from m2clip.commands.shared.segment_scoring import check_segments, read_segments, score_segments
from m2clip.commands.shared.time_stamps import add_windows, check_windows, windows_of
from m2clip.files.folders import check_apart

EXAMPLE = """  m2clip eval runs/k400 --list val.txt --clips 4 --crops 3
  torchrun --nproc-per-node 8 -m m2clip.cli eval runs/k400 --list val.txt --precision fp16
  m2clip eval runs/k400 --segments activity_net.json --root videos --split validation --window 4 --step 1"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "eval", run, "Score a run on a list of videos, with the classes it was trained on", EXAMPLE
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    add_list(parser, "label set or class file to check against the run's classes (default: the run's)", required=False)
    add_views(parser)
    add_windows(parser)
    parser.add_argument(
        "--segments",
        help="list of parts, such as ActivityNet's JSON, in place of --list: score the segments found in its videos",
    )
    parser.add_argument("--with-frozen", action="store_true", help="show frozen CLIP beside it")
    parser.add_argument("--output", help="folder for the JSON and PNG files (default: the run folder)")
    add_clip(parser)
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the files."""
    from m2clip import distributed
    from m2clip.commands.shared.scoring import list_name, score
    from m2clip.data.lists.label_sets import load_class_names

    check_apart(args.output, args.list)
    check_segments(args)
    if check_windows(args):
        windows_of(args)  # impossible ones are refused before the model is loaded
    folder = Path(args.run_folder)
    device = distributed.init(device=args.device)
    try:
        named = load_class_names(args.classes) if args.classes else None
        names = named or models.run_class_names(folder)
        # Lists before the model, which takes longer.
        annotations = models.read_list(args, names) if args.segments is None else None
        segments = read_segments(args, names) if annotations is None else None
        candidates = models.candidates(args, models.open_run(folder, args, named))
        config, output = models.run_config(args, folder), Path(args.output or folder)
        if segments is not None:
            score_segments(args, device, config, candidates, segments, output)
        elif annotations is not None:
            stem = f"eval_{list_name(args.list, args.split)}"
            score(args, device, config, annotations, candidates, names, output, stem)
    finally:
        distributed.shutdown()
