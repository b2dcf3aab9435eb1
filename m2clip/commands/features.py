"""`m2clip features`: the embeddings of each of very many videos."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.shared import models
from m2clip.commands.shared.long_lists import RESTART, add_model, add_videos, add_work
from m2clip.commands.shared.output import progress_bar
from m2clip.commands.shared.parsing import add_command
from m2clip.files.folders import check_apart

EXAMPLE = f"""  m2clip features videos/ out --run runs/k400
  m2clip features list.txt out --clip ViT-B-16-quickgelu --output-format parquet
  torchrun --nproc-per-node 8 -m m2clip.cli features list.txt out --run runs/k400 --precision fp16
  m2clip features list.txt out --run runs/k400 --ray --address auto

every video has one vector (D,), and one for each frame (T, D): means over its views, fp32 and not
normalised. {RESTART}"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "features", run, "Compute the embeddings of each video of a long list", EXAMPLE)
    add_videos(parser)
    add_model(parser)
    add_work(parser, ("safetensors", "parquet"))


def run(args: argparse.Namespace) -> None:
    """Compute features, and report."""
    from m2clip import at_scale
    from m2clip.commands.shared.long_lists import inputs, job, report, run_folder

    check_apart(args.output, args.list, option="OUTPUT")
    folder, given = run_folder(args), inputs(args)
    # Features of a video do not depend on class names, which a model must have.
    model = models.open_run(folder, args) if folder else models.open_frozen(args, ["video"])
    work = job(args, model, given)
    with progress_bar("features", not args.json and work["executor"].process[0] == 0) as progress:
        summary = at_scale.features(model, progress=progress, **work)
    report(args, summary)
