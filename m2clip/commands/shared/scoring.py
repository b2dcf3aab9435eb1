"""What `eval` and `zeroshot` share: score models on one list, print the table, write the files."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.outcome import OutcomeFiles, class_table, outcome_lines, write_outcome
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
    """Evaluate models on the same videos and report: the JSON has all of them, the other files are of the first.

    Args:
        args: parsed arguments: precision, json.
        device: torch.device.
        config: views, reader, workers, batch size and what an unreadable video does.
        annotations: the videos.
        candidates: (name, model) pairs.
        class_names: names of the labels.
        output: folder of the files.
        stem: first part of their names.
        adapters_off: adapters that the first model runs without.
    """
    from m2clip import distributed
    from m2clip.train.setup import clip_settings

    with results_folder(args, output) as (output, kept):
        files = OutcomeFiles.of(output, stem)
        results = [
            score_one(args, device, config, annotations, name, model, class_names, adapters_off if number == 0 else ())
            for number, (name, model) in enumerate(candidates)
        ]
        if distributed.is_main():
            value = {"results": [result.to_dict() for result in results]}
            if args.json:
                print_json(value)
            else:
                _print(results)
            if kept:
                settings = clip_settings(config, candidates[0][1])
                written = write_outcome(value, results[0], annotations.items, settings, files, _title(results[0]))
                if not args.json:
                    print_line("written: " + ", ".join(str(path) for path in written))
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


def _title(result: EvalResult) -> str:
    return f"{result.name}, {result.main_head}: top-1 {percent(result.main.top1)} %"


def _print(results: Sequence[EvalResult]) -> None:
    first = results[0]
    console().print(results_table(results))
    lines = {result.settings_line(): result.name for result in results}
    for line, name in lines.items():
        print_line(f"{name}: {line}" if len(lines) > 1 else line)
    console().print(class_table(first))
    for line in outcome_lines(first):
        print_line(line)
    print_failures(first.failures)


def results_table(results: Sequence[EvalResult]) -> Table:
    """Top-1, top-5 and mean class accuracy in per cent, a row for each model and head."""
    rows = [
        (result.name, head, percent(scores.top1), percent(scores.top5), percent(scores.mean_class))
        for result in results
        for head, scores in result.heads.items()
    ]
    return table(("model", "head", "top-1 %", "top-5 %", "mean class %"), rows, numbers=3)
