"""What commands print: tables, progress and JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from m2clip.terminal import json_text, printable, told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from m2clip.evaluate.results import Failure

FAILURES_SHOWN = 5


def console() -> Console:
    """Standard output, without guesses about which words deserve colours."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output; an object also has what was noticed on the way, by field."""
    if isinstance(value, dict):
        noticed: dict[str, list[object]] = {}
        for field, fact in ((field, fact) for notice in told for field, fact in notice.facts.items()):
            noticed.setdefault(field, []).append(fact)
        value = {**noticed, **value}
    print(json_text(value))


def print_line(text: str) -> None:
    """One line that is never wrapped or read as markup."""
    console().print(printable(text), soft_wrap=True, markup=False)


def print_result(args: argparse.Namespace, value: dict[str, Any], line: str) -> None:
    """A value with --json, otherwise the line that says the same."""
    if args.json:
        print_json(value)
    else:
        print_line(line)


def print_failures(failures: Sequence[Failure], where: str = "the JSON file") -> None:
    """The first videos that failed, and how many more are listed where."""
    for failure in failures[:FAILURES_SHOWN]:
        print_line(f"failed: {failure.describe()}")
    if len(failures) > FAILURES_SHOWN:
        print_line(f"... and {len(failures) - FAILURES_SHOWN} more, listed in {where}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0, total: bool = False) -> Table:
    """A table with thin rules.

    Args:
        header: column names.
        rows: cells; line breaks of names and cells are kept.
        numbers: how many of the last columns are numbers, set flush right.
        total: whether the last row is a sum, set off by a rule.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(header):
        made.add_column(
            Text(printable(name, keep="\n")),
            justify="right" if place >= len(header) - numbers else "left",
            overflow="fold",
        )
    for place, row in enumerate(rows):
        made.add_row(*(Text(printable(cell, keep="\n")) for cell in row), end_section=total and place == len(rows) - 2)
    return made


def percent(share: float | None) -> str:
    """A share between 0 and 1 in per cent, "-" for None."""
    return "-" if share is None else f"{100 * share:.2f}"


@contextmanager
def progress_bar(
    what: str, shown: bool, written: Callable[[float], str] = str
) -> Iterator[Callable[[float, float], None] | None]:
    """A progress bar on standard error, gone at the end; yields a function (done, total), or None if not shown.

    Args:
        what: is done.
        shown: whether anybody wants to see it.
        written: how an amount is written.
    """
    # Into a file or a pipe a bar writes only empty lines.
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    amount = TextColumn("{task.fields[amount]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(what), total=None, amount="")

        def update(done: float, total: float) -> None:
            progress.update(task, completed=done, total=total, amount=f"{written(done)}/{written(total)}")

        yield update
