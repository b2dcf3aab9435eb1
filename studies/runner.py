"""What the studies share: options, runs that are kept, tables, and the page beside its JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, write_results

ROOT = Path(__file__).resolve().parent.parent
Page = Callable[[Mapping[str, Any]], list[str]]


def parser(description: str | None, folder: str, jobs: bool = True) -> argparse.ArgumentParser:
    """The options of all studies; jobs: whether it starts runs of its own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--folder", type=Path, default=Path(folder), help=f"videos and runs (default: {folder})")
    if jobs:
        made.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    return made


def at_once(work: Callable[[Any], object], tasks: Iterable[Any], jobs: int) -> None:
    """Do all tasks, so many at a time, and say when each is done."""
    start = time.monotonic()

    def timed(task: Any) -> None:
        work(task)
        print(f"{time.monotonic() - start:6.0f} s  {task}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(timed, tasks))


def call_again(program: str, *task: str) -> None:
    """Run one task of a study in a process of its own, which gets the task as --one."""
    subprocess.run([sys.executable, program, *sys.argv[1:], "--one", *task], check=True)


def percent(mean: float, deviation: float | None = None) -> str:
    """A share, and how far it goes to both sides, in per cent."""
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def of_seeds(values: Sequence[float]) -> str:
    """Mean and standard deviation in per cent."""
    if not values:
        return "–"
    numbers = [100 * value for value in values]
    return f"{statistics.mean(numbers):.1f}" + (f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose first column is text and whose others are numbers."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [line(header), rule, *map(line, rows)]


def line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def text_of(name: str, found: Mapping[str, Any], page: Page, after: str = "") -> str:
    """The page of a study from its JSON, which ends by saying how it was made."""
    end = f"Made by `python studies/{name}.py`{after}; every number: `benchmarks/results/cpu/{name}.json`."
    return "\n".join([*page(found), "", end, ""])


def publish(name: str, content: dict[str, Any], page: Page, device: str = "cpu", after: str = "") -> None:
    """Write a study's JSON and its page in docs/, and print the page."""
    path = write_results(name, torch.device(device), content)
    target = ROOT / "docs" / f"{name}.md"
    target.write_text(text_of(name, json.loads(path.read_text()), page, after))
    print(f"{target.read_text()}\n{path}\n{target}")


def recorded(name: str) -> dict[str, Any]:
    """A study's JSON as it was recorded on a CPU."""
    found: dict[str, Any] = json.loads((RESULTS / "cpu" / f"{name}.json").read_text())
    return found
