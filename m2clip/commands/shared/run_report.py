"""What `m2clip train VIDEOS` ends with: scores, classes, pictures, and the command that uses the run."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.outcome import OutcomeFiles, class_table, outcome_lines, write_outcome
from m2clip.commands.shared.output import console, percent, print_failures, print_json, print_line
from m2clip.commands.shared.scoring import results_table, score_one
from m2clip.files.kept_work import check_replaceable

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.data.lists.rows import VideoItem
    from m2clip.data.train_lists import TrainLists
    from m2clip.protocols.own_videos import Plan


def report_videos(args: argparse.Namespace, device: Any, config: RunConfig, lists: TrainLists, plan: Plan) -> None:
    """Score a run on the videos that were held out, draw its pictures, and print all of it.

    Args:
        args: parsed arguments: precision, json.
        device: torch.device.
        config: of the run.
        lists: its videos.
        plan: what it was to do.

    Raises:
        InputError: a file that would be replaced and is no result of this program.
    """
    from m2clip import distributed
    from m2clip.checkpoints.adapters import load_adapters
    from m2clip.plots.pictures import training_curves
    from m2clip.train.log import METRICS
    from m2clip.train.setup import clip_settings, named_list, training_list

    folder = Path(config.output)
    files, curves = OutcomeFiles.of(folder, "val"), folder / "curves.png"
    check_replaceable(curves)
    shown, result = training_list(config)[0].items[0], None
    if lists.val is not None:
        model = load_adapters(folder)
        held_out = named_list(config, config.data.val, None, config.data.classes)
        shown = held_out.items[0]
        result = score_one(args, device, config, held_out, models.display_name(model), model, model.class_names)
    if not distributed.is_main():
        return
    written = [training_curves(folder / METRICS, curves)]
    if result is not None:
        value = {"results": [result.to_dict()]}
        title = f"{result.name}: top-1 {percent(result.top1)} % of {result.denominator} held-out videos"
        written += write_outcome(value, result, held_out.items, clip_settings(config, model), files, title)
    predict = _predict_command(shown, folder)
    if args.json:
        found = {"run": str(folder), "lists": asdict(lists), "plan": asdict(plan), "predict": predict}
        print_json(found | {"result": None if result is None else result.to_dict()})
        return
    if result is not None:
        console().print(results_table([result]))
        print_line(f"of {result.denominator} held-out videos, by which the weights were chosen as well")
        console().print(class_table(result))
        for line in outcome_lines(result):
            print_line(line)
        print_failures(result.failures, str(files.scores))
    print_line("written: " + ", ".join(str(path) for path in written))
    print_line(f"use it: {predict}")


def _predict_command(item: VideoItem, folder: Path) -> str:
    """The command that uses the run on a video; of a part with windows of its length, as it is not all of the video."""
    near = os.path.relpath(item.path)
    # The original of a packed video may be elsewhere.
    video = "VIDEO" if item.sample else str(item.path) if near.startswith("..") else near
    window = [] if item.segment is None else ["--window", f"{item.segment.end - item.segment.start:.3g}"]
    return shlex.join(["m2clip", "predict", video, "--run", str(folder), *window])
