"""`m2clip compare`: two runs on the same videos, and whether their difference is more than chance."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import console, percent, print_json, print_line, table
from m2clip.commands.shared.parsing import add_command, add_json, not_negative
from m2clip.errors import InputError, Notice
from m2clip.files.folders import check_apart
from m2clip.files.kept_work import check_replaceable

if TYPE_CHECKING:
    from m2clip.evaluate.comparison import ClassChange, Comparison

EXAMPLE = """  m2clip compare runs/a runs/b
  m2clip compare runs/a/eval_test_predictions.csv runs/b/eval_test_predictions.csv --out changed.csv

a run folder stands for the *predictions.csv in it, which m2clip eval and m2clip train write."""
SHOWN = 5  # classes of each kind


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "compare", run, "Compare two runs on the videos that both were scored on", EXAMPLE)
    parser.add_argument("first", metavar="A", help="run folder, or a file of predictions")
    parser.add_argument("second", metavar="B", help="the run or file that is compared with it")
    parser.add_argument("--out", help="csv file for the videos that one of them recognises and the other does not")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the bootstrap (default: 0)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Compare, print the tables, write the videos that changed."""
    from m2clip.evaluate.comparison import compare, read_predictions, write_changed

    paths = _predictions_of(Path(args.first), Path(args.second))
    out = None if args.out is None else Path(args.out)
    if out is not None:
        check_apart(out, *paths, option="--out")
        if out.suffix.lower() != ".csv":
            raise InputError(f"--out {out}: a csv file is written; give a name that ends with .csv")
        check_replaceable(out, option="--out")
    first, second = map(read_predictions, paths)
    found = compare(first, second, args.seed)
    if found.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        line = f"{found.videos} videos are compared; left out: {reasons}"
        warnings.warn(Notice(line, left_out=found.left_out), stacklevel=2)
    if out is not None:
        write_changed(found, out)
    if args.json:
        value = found.to_dict()
        for name, path in zip(("first", "second"), paths, strict=True):
            value[name] = {"predictions": str(path), "top1": value[name]}
        print_json(value)
        return
    _print(found, *paths)
    if out is not None:
        print_line(f"written: {out}")


def _predictions_of(first: Path, second: Path) -> tuple[Path, Path]:
    """The tables of predictions that two run folders, or files, stand for: of folders those of the same name.

    Raises:
        InputError: there are none, or several that may be meant.
    """
    from m2clip.evaluate.tables import PREDICTIONS

    names = [
        {path.name for path in place.glob(f"*{PREDICTIONS}")} if place.is_dir() else None for place in (first, second)
    ]
    for place, found in zip((first, second), names, strict=True):
        if found is not None and not found:
            raise InputError(f"{place}: has no predictions: score it first with m2clip eval {place} --list ...")
        if found is None and not place.exists():
            raise InputError(f"{place}: no such run folder or file of predictions")
    one, other = names
    if one is None or other is None:
        return _single(first, one), _single(second, other)
    if len(both := sorted(one & other)) == 1:
        return first / both[0], second / both[0]
    if not both and len(one) == len(other) == 1:
        return _single(first, one), _single(second, other)
    told = ", ".join(both) if both else f"{', '.join(sorted(one))} there, {', '.join(sorted(other))} here"
    raise InputError(
        f"{first} and {second} hold {'several predictions' if both else 'predictions of other names'} ({told}): name a "
        "file of each"
    )


def _single(place: Path, names: set[str] | None) -> Path:
    if names is None:
        return place
    if len(names) > 1:
        raise InputError(f"{place}: holds several predictions ({', '.join(sorted(names))}): name one file")
    return place / next(iter(names))


def _print(found: Comparison, first: Path, second: Path) -> None:
    rows = [(str(first), percent(found.first)), (str(second), percent(found.second))]
    console().print(table((f"of {found.videos} videos", "top-1 %"), rows, numbers=1))
    low, high = (f"{100 * bound:+.2f}" for bound in found.interval)
    print_line(f"difference: {100 * found.difference:+.2f} points, 95 % interval {low} to {high} (paired bootstrap)")
    print_line(
        f"the second alone recognises {found.better} videos, the first alone {found.worse}: "
        f"p = {found.p_value:.3g} (exact McNemar test)"
    )
    gained = [one for one in found.classes if one.difference > 0]
    lost = [one for one in reversed(found.classes) if one.difference < 0]
    for what, classes in (("gained", gained), ("lost", lost)):
        if classes:
            _print_classes(what, classes)


def _print_classes(what: str, classes: Sequence[ClassChange]) -> None:
    rows = [
        (one.name, str(one.videos), percent(one.first), percent(one.second), f"{100 * one.difference:+.2f}")
        for one in classes[:SHOWN]
    ]
    more = f" (of {len(classes)})" if len(classes) > SHOWN else ""
    header = (f"classes that {what} most{more}", "videos", "first %", "second %", "points")
    console().print(table(header, rows, numbers=4))
