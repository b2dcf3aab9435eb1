"""What `eval` and `zeroshot` share: score models on one list, print the table, write the files."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import (
    console,
    percent,
    print_failures,
    print_json,
    print_line,
    progress_bar,
    table,
)
from m2clip.errors import InputError, Notice
from m2clip.evaluate.results import EvalResult
from m2clip.files.folders import check_writable
from m2clip.files.kept_work import check_replaceable, write_result
from m2clip.plots.confusion import confusion_matrix

if TYPE_CHECKING:
    from rich.table import Table

    from m2clip.config import RunConfig
    from m2clip.data.lists.annotations import Annotations
    from m2clip.methods import VideoModel


def list_name(path: str, split: str | None) -> str:
    """What files of results are named after: a list, and its split, so that one does not replace the other."""
    return Path(path).stem + (f"_{split.replace('/', '_')}" if split else "")


def score(
    args: argparse.Namespace,
    device: Any,
    config: RunConfig,
    annotations: Annotations,
    candidates: Sequence[tuple[str, VideoModel]],
    class_names: Sequence[str],
    output: Path,
    stem: str,
    adapters_off: Sequence[str] = (),
) -> list[EvalResult]:
    """Evaluate models on the same videos and report.

    Args:
        args: parsed arguments: precision, json.
        device: torch.device.
        config: views, reader, workers, batch size and what an unreadable video does.
        annotations: the videos.
        candidates: (name, model) pairs; the confusion matrix drawn is the first one's.
        class_names: names of the labels.
        output: folder of the JSON and PNG files.
        stem: first part of their names.
        adapters_off: adapters that the first model runs without.
    """
    from m2clip import distributed

    with results_folder(args, output) as (output, kept):
        files = output / f"{stem}.json", output / f"{stem}_confusion.png"
        check_replaceable(*files)
        results = [
            score_one(args, device, config, annotations, name, model, class_names, adapters_off if number == 0 else ())
            for number, (name, model) in enumerate(candidates)
        ]
        if distributed.is_main():
            _report(results, files, args.json, kept)
    return results


@contextmanager
def results_folder(args: argparse.Namespace, output: Path) -> Iterator[tuple[Path, bool]]:
    """Where results go, and whether they stay there.

    They do not where nothing can be written to the run folder, as of a run of somebody else: what was found is printed
    all the same. A folder that was asked for must be writable.

    Args:
        args: parsed arguments: output.
        output: the folder, by --output or else the run folder.

    Raises:
        InputError: nothing can be written to the folder that --output names.
    """
    try:
        check_writable(output)
    except InputError as error:
        if args.output is not None:
            raise
        warnings.warn(Notice(f"{error}; the results are printed, but not kept", not_kept=str(output)), stacklevel=2)
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder), False
    else:
        yield output, True


def score_one(
    args: argparse.Namespace,
    device: Any,
    config: RunConfig,
    annotations: Annotations,
    name: str,
    model: VideoModel,
    class_names: Sequence[str],
    adapters_off: Sequence[str] = (),
) -> EvalResult:
    """Evaluate one model on one list with a progress bar; arguments as for `score`."""
    from m2clip import distributed
    from m2clip.data.clips import ClipDataset
    from m2clip.evaluate.scoring import evaluate_model
    from m2clip.towers.precision import place
    from m2clip.train.setup import clip_settings

    model = place(model, device, args.precision)
    dataset = ClipDataset(annotations, clip_settings(config, model), training=False)
    with progress_bar(name, distributed.is_main() and not args.json) as progress:
        return evaluate_model(
            model,
            dataset,
            config.eval,
            class_names=class_names,
            device=device,
            workers=config.data.workers,
            precision=args.precision,
            name=name,
            adapters_off=adapters_off,
            progress=progress,
        )


def _report(results: Sequence[EvalResult], files: tuple[Path, Path], as_json: bool, kept: bool) -> None:
    value = {"results": [result.to_dict() for result in results]}
    first = results[0]
    title = f"{first.name}, {next(iter(first.heads))}: top-1 {percent(first.main.top1)} %"
    if as_json:
        print_json(value)
    else:
        _print(results)
    if not kept:
        return
    written = [
        write_result(value, files[0]),
        confusion_matrix(
            first.main.confusion,
            first.class_names,
            files[1],
            title,
            first.main.unreadable,
        ),
    ]
    if not as_json:
        print_line("written: " + ", ".join(str(path) for path in written))


def _print(results: Sequence[EvalResult]) -> None:
    first = results[0]
    console().print(results_table(results))
    lines = {result.settings_line(): result.name for result in results}
    for line, name in lines.items():
        print_line(f"{name}: {line}" if len(lines) > 1 else line)
    print_failures(first.failures)


def results_table(results: Sequence[EvalResult]) -> Table:
    """Top-1 and top-5 in per cent, a row for each model and head."""
    rows = [
        (result.name, head, percent(scores.top1), percent(scores.top5))
        for result in results
        for head, scores in result.heads.items()
    ]
    return table(("model", "head", "top-1 %", "top-5 %"), rows, numbers=2)
