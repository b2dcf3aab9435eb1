"""`m2clip train`: train a run, or resume it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared.contenders import main_process
from m2clip.commands.shared.output import print_result
from m2clip.commands.shared.overrides import add_overrides, join_overrides
from m2clip.commands.shared.parsing import add_command, add_json

EXAMPLE = """  m2clip train --config m2clip_k400_b16_8f --data.train train.txt --data.val val.txt --output runs/k400
  m2clip train --config my_run.yaml --optim.lr 5e-4
  torchrun --nproc-per-node 8 -m m2clip.cli train --config m2clip_k400_b16_8f

the same command, given again, resumes a run that was interrupted."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "train", run, "Train a run, or resume an interrupted one", EXAMPLE)
    parser.add_argument("--config", required=True, help="YAML file, bundled recipe, or run folder")
    parser.add_argument("--fresh", action="store_true", help="refuse an output folder that already holds a run")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Train and say where the run is."""
    from m2clip.config import load_config
    from m2clip.train import trainer as train

    config = load_config(args.config, join_overrides(args.overrides))
    folder = train.run(config, resume=not args.fresh, device=args.device, quiet=args.json)
    report_run(args, folder, f"eval {folder} --list ...")


def report_run(args: argparse.Namespace, folder: Path, scoring: str) -> None:
    """Draw the curves of a run, and say in one process where it is and which command scores it."""
    from m2clip.plots.pictures import training_curves
    from m2clip.train.log import METRICS

    if not main_process():
        return
    if (folder / METRICS).is_file():
        training_curves(folder / METRICS, folder / "curves.png")
    print_result(args, {"run": str(folder)}, f"the run is in {folder}: m2clip {scoring} scores it")
