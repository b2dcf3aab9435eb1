"""What `m2clip train VIDEOS` ends with: scores, classes, pictures, and the command that uses the run."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.output import console, percent, print_failures, print_json, print_line, table
from m2clip.commands.shared.scoring import results_table, score_one
from m2clip.files.kept_work import check_replaceable, write_result

if TYPE_CHECKING:
    from rich.table import Table

    from m2clip.config import RunConfig
    from m2clip.data.train_lists import TrainLists
    from m2clip.evaluate.results import EvalResult
    from m2clip.protocols.own_videos import Plan

CLASSES_SHOWN = 20


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
    from m2clip.plots.confusion import confusion_matrix
    from m2clip.plots.pictures import training_curves
    from m2clip.train.log import METRICS
    from m2clip.train.setup import named_list, training_list

    folder = Path(config.output)
    scores, confusion, curves = folder / "val.json", folder / "val_confusion.png", folder / "curves.png"
    check_replaceable(scores, confusion, curves)
    shown, result = training_list(config)[0].items[0], None
    if lists.val is not None:
        model = load_adapters(folder)
        held_out = named_list(config, config.data.val, None, config.data.classes)
        shown = held_out.items[0]
        result = score_one(args, device, config, held_out, models.display_name(model), model, model.class_names)
    if not distributed.is_main():
        return
    files = [training_curves(folder / METRICS, curves)]
    if result is not None:
        value = {"results": [result.to_dict()]}
        title = f"{result.name}: top-1 {percent(result.top1)} % of {result.denominator} held-out videos"
        main = result.main
        files += [
            confusion_matrix(main.confusion, result.class_names, confusion, title, main.unreadable),
            write_result(value, scores),
        ]
    predict = _predict_command(shown.path, folder)
    if args.json:
        found = {"run": str(folder), "lists": asdict(lists), "plan": asdict(plan), "predict": predict}
        print_json(found | {"result": None if result is None else result.to_dict()})
        return
    if result is not None:
        console().print(results_table([result]))
        print_line(f"of {result.denominator} held-out videos, by which the weights were chosen as well")
        console().print(class_table(result))
        print_failures(result.failures, str(scores))
    print_line("written: " + ", ".join(str(path) for path in files))
    print_line(f"use it: {predict}")


def class_table(result: EvalResult) -> Table:
    """The classes with their top-1, worst first."""
    scores = result.main
    rows = []
    for name, right, counts, unreadable in zip(
        result.class_names, scores.per_class, scores.confusion, scores.unreadable, strict=True
    ):
        if right is not None:
            rows.append((right, -sum(counts) - unreadable, name))
    rows.sort()
    cells = [(name, str(-videos), percent(right)) for right, videos, name in rows[:CLASSES_SHOWN]]
    if len(rows) > CLASSES_SHOWN:
        cells.append((f"... and {len(rows) - CLASSES_SHOWN} better classes", "", ""))
    return table(("class, worst first", "videos", "top-1 %"), cells, numbers=2)


def _predict_command(video: Path, folder: Path) -> str:
    near = os.path.relpath(video)
    return shlex.join(["m2clip", "predict", str(video) if near.startswith("..") else near, "--run", str(folder)])
