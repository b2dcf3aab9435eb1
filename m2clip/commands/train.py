"""`m2clip train`: train, or go on training, a run."""

from __future__ import annotations

import argparse
import os
from typing import Any

from m2clip.commands.parsing import add_command, add_json, join_overrides

EXAMPLE = """  m2clip train --config m2clip_k400_b16_8f --data.train train.txt --data.val val.txt --output runs/k400
  m2clip train --config my_run.yaml --optim.lr 5e-4
  torchrun --nproc-per-node 8 -m m2clip.cli train --config m2clip_k400_b16_8f

any field of the configuration can be given as --section.field value; a run that was
interrupted goes on where it stopped when the same command is given again."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "train", run, "Train a run, or go on with an interrupted one", EXAMPLE)
    parser.add_argument("--config", required=True, help="YAML file, bundled recipe, or run folder")
    parser.add_argument("--fresh", action="store_true", help="refuse an output folder that already holds a run")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(parser)
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> None:
    """Train and say where the run is."""
    from m2clip import plots, train
    from m2clip.commands.output import print_json, print_line
    from m2clip.config import load_config
    from m2clip.run_log import METRICS

    config = load_config(args.config, join_overrides(args.overrides))
    folder = train.run(config, resume=not args.fresh, device=args.device, quiet=args.json)
    # The process group is gone by now: torchrun's environment still tells who prints.
    if os.environ.get("RANK", "0") != "0":
        return
    if (folder / METRICS).is_file():
        plots.training_curves(folder / METRICS, folder / "curves.png")
    if args.json:
        print_json({"run": str(folder)})
    else:
        print_line(f"the run is in {folder}: m2clip eval {folder} --list ... scores it")
