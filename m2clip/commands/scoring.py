"""What `eval` and `zeroshot` share: score models on one list, print the table, write the files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip import plots
from m2clip.commands import models
from m2clip.commands.output import console, percent, print_json, print_line, progress_bar, results_table
from m2clip.results import EvalResult, write_json, writing

if TYPE_CHECKING:
    from m2clip.config import RunConfig
    from m2clip.data.annotations import Annotations
    from m2clip.methods import VideoModel

FAILURES_SHOWN = 5


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
        output, stem: folder and first part of the names of the JSON and PNG files.
        adapters_off: adapters that the first model runs without.
    """
    from m2clip import distributed

    check_writable(output / f"{stem}.json")
    results = [
        score_one(args, device, config, annotations, name, model, class_names, adapters_off if number == 0 else ())
        for number, (name, model) in enumerate(candidates)
    ]
    if distributed.is_main():
        _report(results, output, stem, args.json)
    return results


def check_writable(path: Path) -> None:
    """Find out before the work, and not after it, that a file could not be written: InputError."""
    from m2clip import distributed

    if distributed.is_main():
        with writing(path):
            tempfile.TemporaryFile(dir=path.parent).close()


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
    from m2clip.evaluate import evaluate_model

    model = models.place(model, device, args.precision)
    dataset = ClipDataset(annotations, models.clip_settings(config, model), training=False)
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


def _report(results: Sequence[EvalResult], output: Path, stem: str, as_json: bool) -> None:
    value = {"results": [result.to_dict() for result in results]}
    first = results[0]
    title = f"{first.name}, {next(iter(first.heads))}: top-1 {percent(first.main.top1)} %"
    if as_json:
        print_json(value)
    else:
        _print(results)
    written = [
        write_json(value, output / f"{stem}.json"),
        plots.confusion_matrix(first.main.confusion, first.class_names, output / f"{stem}_confusion.png", title),
    ]
    if not as_json:
        print_line("written: " + ", ".join(str(path) for path in written))


def _print(results: Sequence[EvalResult]) -> None:
    first = results[0]
    console().print(results_table(results))
    lines = {result.settings_line(): result.name for result in results}
    for line, name in lines.items():
        print_line(f"{name}: {line}" if len(lines) > 1 else line)
    for failure in first.failures[:FAILURES_SHOWN]:
        print_line(f"failed: {failure.describe()}")
    if len(first.failures) > FAILURES_SHOWN:
        print_line(f"... and {len(first.failures) - FAILURES_SHOWN} more, listed in the JSON file")
