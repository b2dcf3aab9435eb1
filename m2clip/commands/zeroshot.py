"""`m2clip zeroshot`: score a run or frozen CLIP on any label set, through the text tower."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.contenders import spread
from m2clip.commands.shared.output import console, print_json, print_line, table
from m2clip.commands.shared.parsing import (
    add_clip,
    add_command,
    add_device,
    add_frozen,
    add_json,
    add_list,
    add_views,
    not_negative,
    positive,
)
from m2clip.errors import InputError
from m2clip.files.folders import check_apart
from m2clip.files.kept_work import check_replaceable, write_result

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.methods import VideoModel
    from m2clip.protocols.runs import ScoredSet

EXAMPLE = """  m2clip zeroshot runs/k400 --list testlist01.txt --root UCF-101 --classes ucf101 --with-frozen
  m2clip zeroshot frozen --list testlist01.txt --root UCF-101 --classes ucf101 --clip ViT-B-16-quickgelu
  m2clip zeroshot runs/k400 --list splits --split test1 test2 test3 --root UCF-101 --classes ucf101
  m2clip zeroshot runs/k400 --list val1.txt val2.txt val3.txt --classes k600-zs1 k600-zs2 k600-zs3
  m2clip zeroshot runs/k400 --list val.txt --classes hmdb51 --halves 10

several lists, splits or class lists, or random halves of the classes, give mean and
deviation over them; what is given once holds for all."""
SHOWN = 4  # as many splits get a column of their own


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "zeroshot", run, "Score a run, or frozen CLIP, on classes it was not trained on", EXAMPLE
    )
    parser.add_argument("run_folder", metavar="RUN", help='run folder, or "frozen" for CLIP without adapters')
    add_list(
        parser, "bundled label set (ucf101, hmdb51, k600-zs1, ...) or class file", classes_required=True, several=True
    )
    group = parser.add_argument_group("random halves of the classes")
    group.add_argument("--halves", type=positive, help="score so many random halves of the classes (papers: 10)")
    group.add_argument("--halves-seed", type=not_negative, default=0, help="of their draw (default: 0)")
    add_views(parser)
    add_frozen(parser)
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
    from m2clip.commands.shared.scoring import list_name, results_folder, score

    check_apart(args.output, *args.list)
    frozen = args.run_folder == models.FROZEN
    folder = None if frozen else Path(args.run_folder)
    if frozen and args.adapters_off:
        raise InputError("frozen CLIP has no adapters: drop --adapters-off, or give a run folder")
    device = distributed.init(device=args.device)
    try:
        parts = _parts(args)
        first = parts[0]
        model = models.open_run(folder, args) if folder else models.open_frozen(args, first.class_names)
        candidates = models.candidates(args, model)
        output = Path(args.output) if args.output else folder or Path("runs") / models.FROZEN
        config = models.run_config(args, folder)
        off = "".join(f"_no_{name}" for name in args.adapters_off)
        split = args.split[0] if args.split and len(args.split) == 1 else None
        stem = f"zeroshot_{Path(args.classes[0]).stem}_{list_name(args.list[0], split)}"
        if len(parts) == 1 and not args.halves:
            names = first.class_names
            score(args, device, config, first.annotations, candidates, names, output, stem + off, args.adapters_off)
        else:
            what = f"{args.halves}_halves" if args.halves else f"{len(parts)}_splits"
            with results_folder(args, output) as (output, kept):
                _score_parts(args, device, config, parts, dict(candidates), output, f"{stem}_{what}{off}", kept)
    finally:
        distributed.shutdown()


def _parts(args: argparse.Namespace) -> list[ScoredSet]:
    """What the lists, splits and class lists name, one for each, and the random halves of each of them."""
    from m2clip.data.lists.label_sets import load_class_names
    from m2clip.data.lists.splits import random_halves
    from m2clip.protocols.runs import ScoredSet

    given = {"--list": args.list, "--split": args.split or [None], "--classes": args.classes}
    number = max(len(values) for values in given.values())
    for option, values in given.items():
        if len(values) not in (1, number):
            raise InputError(f"{option} is given {len(values)} times, another option {number}: once or as often as it")
    several = [values for values in given.values() if len(values) > 1]
    parts = []
    for place in range(number):
        one = copy.copy(args)
        one.list, one.split, classes = (values[place % len(values)] for values in given.values())
        name = " ".join(Path(values[place]).stem for values in several)
        parts.append(ScoredSet(name, models.read_list(one, load_class_names(classes))))
    if len({part.name for part in parts}) < number:
        parts = [ScoredSet(f"{place} {part.name}", part.annotations) for place, part in enumerate(parts, start=1)]
    if not args.halves:
        return parts
    halves = []
    for part in parts:
        drawn = enumerate(random_halves(part.class_names, args.halves, args.halves_seed), start=1)
        for place, names in drawn:
            chosen = part.annotations.select_classes(names)
            if not chosen.items:
                raise InputError(f"{chosen.source}: has no video of the classes of random half {place}")
            halves.append(ScoredSet(f"{part.name} half {place}".strip(), chosen))
    return halves


def _score_parts(
    args: argparse.Namespace,
    device: Any,
    config: RunConfig,
    parts: Sequence[ScoredSet],
    candidates: Mapping[str, VideoModel],
    output: Path,
    stem: str,
    kept: bool,
) -> None:
    from m2clip import distributed
    from m2clip.commands.shared.scoring import score_one
    from m2clip.config_fields import deciding
    from m2clip.evaluate.results import EvalResult
    from m2clip.evaluate.tables import PREDICTIONS, write_predictions
    from m2clip.plots import pictures as plots
    from m2clip.protocols import comparisons as protocols
    from m2clip.protocols.runs import slug

    first = next(iter(candidates))

    def score(name: str, model: VideoModel, part: ScoredSet) -> EvalResult:
        off = args.adapters_off if name == first else ()
        found = score_one(args, device, config, part.annotations, name, model, part.class_names, off)
        if distributed.is_main():
            path = output / stem / f"{slug(name)}_{slug(part.name)}_{PREDICTIONS}"
            write_predictions(found, part.annotations.items, path, "zero-shot")
        return found

    settings = deciding(config, "views", "scores")
    settings |= {"precision": args.precision, "adapters off": list(args.adapters_off)}
    files = output / f"{stem}.json", output / f"{stem}.png"
    check_replaceable(*files)
    results = protocols.zero_shot(candidates, parts, score, output / stem, settings)
    if not distributed.is_main():
        return
    written = write_result(results, files[0])
    found = {name: scores["top1"] for name, scores in results["models"].items()}
    shown = results["splits"] if len(parts) <= SHOWN else []
    mean = f"mean of {len(parts)}"
    picture = plots.comparison_bars(
        # The last model is drawn in the strong colour.
        {
            name: {**dict(zip(shown, top1["values"], strict=False)), mean: top1["mean"]}
            for name, top1 in reversed(found.items())
        },
        files[1],
        "zero-shot top-1",
    )
    if args.json:
        print_json(results)
        return
    rows = [
        (name, *(f"{100 * value:.1f}" for value in top1["values"][: len(shown)]), spread(top1))
        for name, top1 in found.items()
    ]
    console().print(table(("top-1 %", *shown, mean), rows, numbers=1 + len(shown)))
    print_line(f"{results['splits'][0]}: {results['models'][first]['evaluation'][0]}")
    if kept:
        print_line(f"written: {written}, {picture}")
