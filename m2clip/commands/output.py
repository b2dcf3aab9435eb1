"""What commands print: tables, progress and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from m2clip.results import EvalResult


def console() -> Console:
    """Standard output, without guesses about which words deserve colours."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_line(text: str) -> None:
    """One line that is never wrapped or read as markup."""
    console().print(text, soft_wrap=True, markup=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0, total: bool = False) -> Table:
    """A table with thin rules.

    Args:
        header: column names.
        rows: cells.
        numbers: how many of the last columns are numbers, set flush right.
        total: whether the last row is a sum, set off by a rule.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(header):
        made.add_column(name, justify="right" if place >= len(header) - numbers else "left", overflow="fold")
    for place, row in enumerate(rows):
        made.add_row(*(Text(cell) for cell in row), end_section=total and place == len(rows) - 2)
    return made


def percent(share: float | None) -> str:
    """A share between 0 and 1 in per cent, "-" for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def results_table(results: Sequence[EvalResult]) -> Table:
    """Top-1 and top-5 in per cent, a row for each model and head."""
    rows = [
        (result.name, head, percent(scores.top1), percent(scores.top5))
        for result in results
        for head, scores in result.heads.items()
    ]
    return table(("model", "head", "top-1 %", "top-5 %"), rows, numbers=2)


@contextmanager
def progress_bar(what: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, gone at the end; yields a function (done, total), or None if not shown."""
    # Into a file or a pipe a bar writes only empty lines.
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
