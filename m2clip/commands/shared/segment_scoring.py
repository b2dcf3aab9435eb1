"""`m2clip eval --segments`: average precision of the segments that models find in long videos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from m2clip.commands.shared.output import FAILURES_SHOWN, console, percent, print_json, print_line, table
from m2clip.commands.shared.scoring import list_name, results_folder
from m2clip.commands.shared.time_stamps import timeline_of
from m2clip.errors import InputError
from m2clip.files.kept_work import check_replaceable, write_result

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.evaluate.detection import DetectionResult, Interval
    from m2clip.methods import VideoModel

    Segments: TypeAlias = tuple[list[Interval], dict[str, Path]]


def check_segments(args: argparse.Namespace) -> None:
    """InputError where --segments is not alone, or lacks what it needs."""
    if (args.list is None) == (args.segments is None):
        raise InputError("what is scored? Give --list, or --segments with the segments of long videos")
    if args.segments is not None and args.window is None:
        raise InputError("--segments needs --window, the seconds that the model sees at once")
    if args.segments is None and args.window is not None:
        raise InputError("--window is for --segments")


def score_segments(
    args: argparse.Namespace,
    device: Any,
    config: RunConfig,
    candidates: Sequence[tuple[str, VideoModel]],
    segments: Segments,
    output: Path,
) -> None:
    """Evaluate models on the same long videos, and report.

    Args:
        args: parsed arguments of `m2clip eval`.
        device: torch.device.
        config: how frames are read and transformed.
        candidates: (name, model) pairs.
        segments: as `read_segments` gives them.
        output: folder of the JSON file.

    Raises:
        InputError: no video that can be read.
    """
    from m2clip import distributed
    from m2clip.evaluate.detection import detection_result

    true, videos = segments
    results: list[tuple[str, DetectionResult]] = []
    with results_folder(args, output) as (folder, kept):
        path = folder / f"segments_{list_name(args.segments, args.split)}.json"
        check_replaceable(path)
        for name, model in candidates:
            own = sorted(videos)[distributed.rank() :: distributed.world_size()]
            parts = distributed.gather_objects(_predict(args, device, config, model, {one: videos[one] for one in own}))
            predicted = [one for found, _ in parts for one in found]
            failures = [one for _, failed in parts for one in failed]
            if len(failures) == len(videos):
                raise InputError(f"none of the {len(videos)} videos could be read; the first: {failures[0]}")
            results.append((name, detection_result(true, predicted, videos)))
        if distributed.is_main():
            _report(args, results, failures, path if kept else None)


def read_segments(args: argparse.Namespace, class_names: Sequence[str]) -> Segments:
    """The true segments, and the file of each video, which may have none.

    Args:
        args: parsed arguments of `m2clip eval`.
        class_names: those of the run.

    Raises:
        InputError: a file of segments that is none, or labels that the run does not know.
    """
    from m2clip.data.lists.annotations import detect_format, load_annotations
    from m2clip.data.lists.formats import ClassLookup
    from m2clip.data.lists.on_disk import Disk
    from m2clip.data.lists.segments import of_subset, read_database, video_file
    from m2clip.evaluate.detection import Interval

    source = Path(args.segments)
    if detect_format(source) != "activitynet":
        items = load_annotations(source, root=args.root, split=args.split, class_names=list(class_names)).items
        if any(item.segment is None for item in items):
            raise InputError(f"{source}: lists whole videos: --segments is for parts of them, with a start and an end")
        listed = [Interval(str(one.path), class_names[one.label], *one.segment) for one in items if one.segment]
        return listed, {str(item.path): item.path for item in items}
    root, disk, lookup = Path(args.root) if args.root else source.parent, Disk(), ClassLookup(list(class_names))
    true, videos = [], {}
    for one in of_subset(read_database(source), args.split, source):
        videos[one.video] = video_file(one.video, root, disk, one.where)
        for segment, label in one.parts:
            if segment.problem is not None:
                raise InputError(f"{one.where}: {segment.problem}")
            true.append(Interval(one.video, class_names[lookup.label(label, one.where)], *segment))
    if not true:
        raise InputError(f"{source}: has no segment" + (f" of the split {args.split!r}" if args.split else ""))
    return true, videos


def _predict(
    args: argparse.Namespace, device: Any, config: RunConfig, model: VideoModel, videos: dict[str, Path]
) -> tuple[list[Interval], list[str]]:
    """The segments that are found, and what is wrong with videos that cannot be read: these have none."""
    from m2clip import distributed
    from m2clip.evaluate.detection import Interval
    from m2clip.towers.precision import place
    from m2clip.train.setup import clip_settings

    model = place(model, device, args.precision)
    settings = clip_settings(config, model)
    found, failures = [], []
    for name, path in videos.items():
        try:
            timeline = timeline_of(args, model, path, settings, distributed.is_main() and not args.json)
        except InputError as error:
            if config.eval.on_error == "raise":
                raise
            failures.append(str(error))
            continue
        found += [Interval(name, label, start, end, score) for start, end, label, score in timeline.rows()]
    return found, failures


def _report(
    args: argparse.Namespace, results: Sequence[tuple[str, DetectionResult]], failures: Sequence[str], path: Path | None
) -> None:
    value = {
        "results": [{"name": name, **result.to_dict()} for name, result in results],
        "window": args.window,
        "step": args.step or args.window / 4,
        "failures": list(failures),
    }
    if path is not None:
        write_result(value, path)
    if args.json:
        print_json(value)
        return
    first = results[0][1]
    header = ("model", *(f"AP@{tiou:g} %" for tiou in first.tious), "mean %")
    rows = [(name, *map(percent, [*result.by_tiou, result.mean])) for name, result in results]
    console().print(table(header, rows, numbers=len(header) - 1))
    print_line(f"{first.true} segments of {len(first.by_class)} classes in {first.videos} videos")
    for failure in failures[:FAILURES_SHOWN]:
        print_line(f"failed, counted as a video without segments: {failure}")
    if len(failures) > FAILURES_SHOWN:
        print_line(f"... and {len(failures) - FAILURES_SHOWN} more" + (f", listed in {path}" if path else ""))
    if path is not None:
        print_line(f"written: {path}")
