"""`m2clip zeroshot`: score a run or frozen CLIP on any label set, through the text tower."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.parsing import add_clip, add_command, add_device, add_json, add_list, add_views, positive

EXAMPLE = """  m2clip zeroshot runs/k400 --list testlist01.txt --root UCF-101 --classes ucf101 --with-frozen
  m2clip zeroshot frozen --list testlist01.txt --root UCF-101 --classes ucf101 --clip ViT-B-16-quickgelu"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "zeroshot", run, "Score a run, or frozen CLIP, on classes it was not trained on", EXAMPLE
    )
    parser.add_argument("run_folder", metavar="RUN", help='run folder, or "frozen" for CLIP without adapters')
    add_list(parser, "bundled label set (ucf101, hmdb51, k600-zs1, ...) or class file", classes_required=True)
    add_views(parser)
    parser.add_argument("--frames", type=positive, default=8, help="frames of a clip for frozen CLIP (default: 8)")
    parser.add_argument(
        "--adapters-off", nargs="+", choices=("visual", "text"), default=(), help="run without these adapters"
    )
    parser.add_argument("--with-frozen", action="store_true", help="show frozen CLIP beside it")
    parser.add_argument("--output", help="folder for the JSON and PNG files (default: the run folder, or runs/frozen)")
    add_clip(parser)
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the files."""
    from m2clip import distributed
    from m2clip.commands import models
    from m2clip.commands.scoring import score
    from m2clip.data.label_sets import load_class_names
    from m2clip.errors import InputError

    frozen = args.run_folder == models.FROZEN
    folder = None if frozen else Path(args.run_folder)
    if frozen and args.adapters_off:
        raise InputError("frozen CLIP has no adapters: drop --adapters-off, or give a run folder")
    device = distributed.init(device=args.device)
    try:
        names = load_class_names(args.classes)
        annotations = models.read_list(args, names)
        model = models.open_run(folder, args) if folder else models.open_frozen(args, names, args.frames)
        candidates = [(models.display_name(model), model)]
        if args.with_frozen and not frozen:
            candidates.append(("frozen CLIP", models.frozen_twin(model)))
        config = models.run_config(args, folder)
        output = Path(args.output) if args.output else folder or Path("runs") / models.FROZEN
        off = "".join(f"_no_{name}" for name in args.adapters_off)
        stem = f"zeroshot_{Path(args.classes).stem}_{Path(args.list).stem}{off}"
        score(args, device, config, annotations, candidates, names, output, stem, args.adapters_off)
    finally:
        distributed.shutdown()
