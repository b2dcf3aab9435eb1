"""`m2clip episodes`: few-shot recognition of new classes from a handful of videos, trained and scored by episodes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.contenders import use_rendered
from m2clip.commands.shared.output import (
    console,
    print_failures,
    print_json,
    print_line,
    print_result,
    progress_bar,
    table,
)
from m2clip.commands.shared.overrides import add_overrides, join_overrides
from m2clip.commands.shared.parsing import (
    add_clip,
    add_command,
    add_device,
    add_frozen,
    add_json,
    add_list,
    add_pictures,
    not_negative,
    positive,
)
from m2clip.commands.train import report_run
from m2clip.data import BUILT_IN
from m2clip.errors import InputError
from m2clip.files.folders import check_apart
from m2clip.files.kept_work import check_replaceable, write_result

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.data.episodes import EpisodeList
    from m2clip.data.lists.annotations import Annotations
    from m2clip.evaluate.episode_results import EpisodeResult
    from m2clip.methods import VideoModel

EXAMPLE = """  m2clip episodes train --config ma_fsar_k100 --data.train train_few_shot.txt --data.val val_few_shot.txt
  m2clip episodes eval runs/ma_fsar_k100 --list test_few_shot.txt --root k100 --with-frozen
  m2clip episodes list --list test_few_shot.txt --root k100 --shots 5 --output 5shot.jsonl

`m2clip episodes train --help`, and so for eval and list, shows their arguments."""
TRAIN_EXAMPLE = """  m2clip episodes train --config ma_fsar_k100 --data.root k100 --output runs/k100 \\
    --data.train train_few_shot.txt --data.val val_few_shot.txt
  m2clip episodes train --config my.yaml --built-in motion --output runs/motion

any field of the configuration can be given as --section.field value; a run that was
interrupted resumes where it stopped when the same command is given again."""
EVAL_EXAMPLE = """  m2clip episodes eval runs/k100 --list test_few_shot.txt --root k100 --shots 1 5 --with-frozen
  m2clip episodes eval frozen --list test_few_shot.txt --root k100 --clip ViT-B-16-quickgelu
  m2clip episodes eval runs/motion --built-in motion

features of the videos are kept, so that a call that was stopped, or one with other shots,
reuses them. An unreadable query is an error (--on-error wrong), or its episode is left
out (skip); in place of an unreadable support video another one of its class is taken."""
LIST_EXAMPLE = """  m2clip episodes list --list test_few_shot.txt --root k100 --shots 5 --output 5shot.jsonl
  m2clip episodes eval runs/k100 --list test_few_shot.txt --root k100 --stored 5shot.jsonl"""

TRAIN_CLIPS, VAL_CLIPS = 32, 10


def add_parser(commands: Any) -> None:
    """Declare the arguments of the three tasks."""
    parser = add_command(
        commands, "episodes", run, "Recognise new classes from a few videos: train and score by episodes", EXAMPLE
    )
    tasks = parser.add_subparsers(title="tasks", dest="task", metavar="TASK", required=True)

    train = add_command(tasks, "train", run, "Train a run by episodes, or resume an interrupted one", TRAIN_EXAMPLE)
    train.add_argument("--config", required=True, help="YAML file, bundled recipe, or run folder")
    train.add_argument("--fresh", action="store_true", help="refuse an output folder that already holds a run")
    _add_built_in(train, "train on most of its base classes, choose weights by the others")
    train.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add_json(train)
    add_overrides(train)

    score = add_command(tasks, "eval", run, "Score a run, or frozen CLIP, by episodes of new classes", EVAL_EXAMPLE)
    score.add_argument("run_folder", metavar="RUN", help='run folder, or "frozen" for CLIP without adapters')
    add_list(score, "label set or class file (default: as in the list)", required=False)
    _add_built_in(score, "take its novel classes")
    _add_shape(score, several=True)
    score.add_argument("--stored", nargs="+", metavar="FILE", help="lists of episodes to ask, in place of drawn ones")
    group = score.add_argument_group("frames of a video (default: as the run was trained, the centre of each segment)")
    group.add_argument("--random-frames", action="store_true", help="a random frame of each segment, as earlier code")
    add_pictures(group)
    add_frozen(group)
    score.add_argument(
        "--metric",
        choices=("otam", "bi_mhm"),
        default="otam",
        help="how frames are matched for methods that bring no metric of their own, frozen CLIP too (default: otam)",
    )
    score.add_argument("--with-frozen", action="store_true", help="show frozen CLIP beside it")
    score.add_argument("--output", help="folder for results and features (default: the run folder, or runs/frozen)")
    add_clip(score)
    add_device(score)
    add_json(score)

    draw = add_command(tasks, "list", run, "Draw episodes and keep them in a file", LIST_EXAMPLE)
    add_list(draw, "label set or class file (default: as in the list)", scored=False)
    _add_shape(draw)
    draw.add_argument("--output", required=True, help="file to write")
    add_json(draw)


def run(args: argparse.Namespace) -> None:
    """Do the task."""
    {"train": _train, "eval": _evaluate, "list": _list}[args.task](args)


def _add_shape(parser: argparse.ArgumentParser, several: bool = False) -> None:
    group = parser.add_argument_group("episodes")
    group.add_argument("--way", type=positive, default=5, help="classes (default: 5)")
    shots: Any = {"nargs": "+", "default": [1, 5]} if several else {"default": 1}
    group.add_argument(
        "--shots", type=positive, help=f"support videos of a class (default: {'1 5' if several else 1})", **shots
    )
    group.add_argument("--queries", type=positive, default=1, help="query videos of a class (default: 1)")
    group.add_argument("--episodes", type=positive, default=10_000, help="how many (default: 10000)")
    group.add_argument("--seed", type=not_negative, default=0, help="of the draw (default: 0)")


def _add_built_in(parser: argparse.ArgumentParser, use: str) -> None:
    group = parser.add_argument_group("built-in videos")
    group.add_argument("--built-in", choices=BUILT_IN, help=f"render a built-in data set and {use}")
    group.add_argument("--videos", help="folder to render into (default: OUTPUT/videos)")
    group.add_argument("--train-clips", type=positive, help="of each base class (default: 32, or those in the folder)")
    group.add_argument("--val-clips", type=positive, help="of each class (default: 10, or those in the folder)")


def _render(args: argparse.Namespace, output: Path) -> Path:
    """The folder of the built-in data set, rendered by the first process while the others wait."""
    from m2clip import distributed
    from m2clip.data.built_in.rendered_set import render_built_in
    from m2clip.data.lists.splits import write_episode_classes

    folder = Path(args.videos) if args.videos else output / "videos"
    if distributed.is_main():
        with progress_bar("rendering videos", not args.json) as progress:
            clips = {
                "train": args.train_clips or _clips_there(folder, "base_train.txt") or TRAIN_CLIPS,
                "val": args.val_clips or _clips_there(folder, "novel_val.txt") or VAL_CLIPS,
            }
            render_built_in(args.built_in, folder, clips, progress=progress)
        write_episode_classes(folder)
    distributed.barrier()
    return folder


def _clips_there(folder: Path, name: str) -> int:
    """Clips of a class in a list that was rendered before; 0 without one."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    labels = [line.rpartition(" ")[2] for line in lines]
    return labels.count(labels[0]) if labels else 0


def _train(args: argparse.Namespace) -> None:
    from m2clip import distributed
    from m2clip.config import load_config
    from m2clip.train import trainer as train
    from m2clip.train.checks import check_model

    config = load_config(args.config, [*join_overrides(args.overrides), "episodes.train=true"])
    if args.built_in:
        check_model(config, distributed.init(config.timeout, args.device))
        folder = _render(args, Path(config.output))
        use_rendered(config, folder, "episodes_train.txt", "episodes_val.txt", "episodes_train_classes.csv")
        config.episodes.val_classes = str(folder / "episodes_val_classes.csv")
    try:
        folder = train.run(config, resume=not args.fresh, device=args.device, quiet=args.json)
    finally:
        distributed.shutdown()
    videos = f"--built-in {args.built_in}" if args.built_in else "--list ..."
    videos += f" --videos {args.videos}" if args.built_in and args.videos else ""
    report_run(args, folder, f"episodes eval {folder} {videos}")


def _evaluate(args: argparse.Namespace) -> None:
    from m2clip import distributed
    from m2clip.commands.shared.scoring import results_folder

    folder = None if args.run_folder == models.FROZEN else Path(args.run_folder)
    output = Path(args.output) if args.output else folder or Path("runs") / models.FROZEN
    device = distributed.init(device=args.device)
    try:
        named = _named_list(args)
        if folder is not None:
            # Before anything is rendered: a mistaken name is told at once.
            model = models.open_run(folder, args)
        with results_folder(args, output) as (output, kept):
            annotations = _rendered_list(args, output) if named is None else named
            lists = _episodes(args, annotations, output)
            if folder is None:
                model = models.open_frozen(args, annotations.class_names or ())
            stem = f"episodes_{args.built_in or Path(args.list).stem}"
            config = models.run_config(args, folder)
            check_replaceable(output / f"{stem}.json")
            results = [
                result
                for name, model in models.candidates(args, model)
                for result in _score(args, device, config, annotations, lists, name, model, output / "features")
            ]
            if distributed.is_main():
                _report(args, results, output / f"{stem}.json", kept)
    finally:
        distributed.shutdown()


def _named_list(args: argparse.Namespace) -> Annotations | None:
    """The videos of --list; None with --built-in."""
    if (args.list is None) == (args.built_in is None):
        raise InputError("give either --list, the videos of the new classes, or --built-in")
    if args.built_in is not None:
        return None
    found = models.read_list(args, args.classes)
    if found.class_names is None:
        raise InputError(f"{args.list} has class numbers only: give their names with --classes")
    return found


def _rendered_list(args: argparse.Namespace, output: Path) -> Annotations:
    from m2clip.data.lists.annotations import load_annotations

    folder = _render(args, output)
    return load_annotations(
        folder / "novel_val.txt", root=folder, format="list", class_names=folder / "novel_classes.csv"
    )


def _episodes(args: argparse.Namespace, annotations: Annotations, output: Path) -> list[EpisodeList]:
    """The lists that --stored names, or drawn ones, which are kept in the output folder and taken from there."""
    from m2clip import distributed
    from m2clip.data.episodes import EpisodeShape, draw_episodes, load_episodes
    from m2clip.data.lists.annotations import list_hash

    if args.stored:
        found = [load_episodes(path, annotations) for path in args.stored]
        shots = [episodes.shape.shots for episodes in found]
        if len(set(shots)) < len(shots) or len({(e.shape.way, e.shape.queries) for e in found}) > 1:
            raise InputError("lists of one call must differ in their shots, and in nothing else of their shape")
        return found
    found = []
    for k in dict.fromkeys(args.shots):
        shape = EpisodeShape(args.way, k, args.queries)
        name = f"{shape.way}way_{k}shot_{shape.queries}q_{args.episodes}_seed{args.seed}"
        path = output / "episodes" / f"{name}_{list_hash(annotations.items)}.jsonl"
        if path.is_file():
            found.append(load_episodes(path, annotations))
            continue
        found.append(draw_episodes(annotations, shape, args.episodes, args.seed))
        if distributed.is_main():
            found[-1].save(path)
    return found


def _score(
    args: argparse.Namespace,
    device: Any,
    config: RunConfig,
    annotations: Annotations,
    lists: Sequence[EpisodeList],
    name: str,
    model: VideoModel,
    cache: Path,
) -> list[EpisodeResult]:
    from m2clip import distributed
    from m2clip.data.episode_clips import EpisodeVideos
    from m2clip.evaluate.episodes import evaluate_episodes
    from m2clip.towers.precision import place
    from m2clip.train.setup import clip_settings

    model = place(model, device, args.precision)
    settings = clip_settings(config, model)
    shown = distributed.is_main() and not args.json
    return evaluate_episodes(
        model,
        EpisodeVideos(annotations, settings, args.random_frames, args.seed),
        lists,
        config.eval,
        device=device,
        workers=config.data.workers,
        precision=args.precision,
        metric=args.metric,
        name=name,
        cache=cache,
        bar=lambda what: progress_bar(what, shown),
    )


def _report(args: argparse.Namespace, results: Sequence[EpisodeResult], path: Path, kept: bool) -> None:
    from m2clip.evaluate.episode_results import by_shots

    value = {"protocol": "episodes", "results": [result.to_dict() for result in results]}
    if kept:
        write_result(value, path)
    if args.json:
        print_json(value)
        return
    shots, rows = by_shots(results)
    cells = [(name, head, *(str(found[k]) for k in shots)) for name, head, found in rows]
    header = (f"{results[0].way}-way accuracy %", "by", *(f"{k}-shot" for k in shots))
    console().print(table(header, cells, numbers=len(shots)))
    for name in dict.fromkeys(result.name for result in results):
        of_model = [result for result in results if result.name == name]
        for result in of_model:
            print_line(f"{name}: {result.settings_line()}")
        print_failures(of_model[0].failures)
    if kept:
        print_line(f"written: {path}")


def _list(args: argparse.Namespace) -> None:
    from m2clip.data.episodes import EpisodeShape, draw_episodes

    check_apart(args.output, args.list, args.classes)
    annotations = models.read_list(args, args.classes)
    episodes = draw_episodes(annotations, EpisodeShape(args.way, args.shots, args.queries), args.episodes, args.seed)
    path = episodes.save(args.output)
    facts = {"episodes": len(episodes), "seed": args.seed, "sha256": episodes.sha256}
    facts |= {"videos": episodes.list_length, "videos_sha256": episodes.list_hash}
    print_result(
        args,
        {"file": str(path), **facts},
        f"{path}: {len(episodes)} episodes, {args.way}-way {args.shots}-shot, of {episodes.list_length} videos, "
        f"sha256 {episodes.sha256}",
    )
