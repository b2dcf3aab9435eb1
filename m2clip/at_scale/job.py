"""Running a job: claim parts of the list, have them computed, store them, until nothing is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from m2clip.at_scale.folder import JobFolder
from m2clip.at_scale.settings import Executor, Outcome, Summary, Work
from m2clip.errors import InputError
from m2clip.evaluate.results import Failure

# How often a process that has nothing left to do looks whether the others are alive, in seconds.
_WAIT = 0.5

Progress = Callable[[int, int], None]


def run(work: Work, output: Path, executor: Executor, progress: Progress | None = None) -> Summary | None:
    """Compute what is missing of a job; any number of processes may do so at once.

    Args:
        work: the job.
        output: its folder.
        executor: computes the parts.
        progress: called with (videos done, videos of the list).

    Returns:
        The summary, for the first of the processes; None for the others, which leave when nothing is left to begin.

    Raises:
        InputError: the folder holds another job or cannot be written; with on_error "raise", a video that failed.
    """
    rank, size = executor.process
    with closing(JobFolder(output, work)) as folder:
        if work.settings.retry_failed and rank == 0:
            folder.drop_failed()
        while True:
            missing = folder.missing()
            if progress is not None:
                progress(folder.done(), len(work.items))
            parts = folder.claim(work.num_parts * rank // size, executor.take(len(missing)))
            if parts:
                _compute(work, folder, executor, parts, progress)
            elif rank != 0:
                return None
            elif missing:
                # Others are at the rest. What one of them leaves behind when it dies can be claimed then.
                time.sleep(_WAIT)
            else:
                break
        summary = folder.finish()
    _check(work, summary.failures)
    return summary


def _compute(work: Work, folder: JobFolder, executor: Executor, parts: list[int], progress: Progress | None) -> None:
    found: dict[int, list[Outcome]] = {}
    with closing(executor.compute(work, parts)) as computed:
        for number, outcomes in computed:
            own = found.setdefault(number, [])
            own += outcomes
            if len(own) == len(work.part(number)):
                folder.write(number, sorted(found.pop(number), key=lambda outcome: outcome.index))
                _check(work, folder.failures(number))
            if progress is not None:
                progress(folder.done() + sum(map(len, found.values())), len(work.items))


def _check(work: Work, failures: list[Failure]) -> None:
    if failures and work.settings.on_error == "raise":
        raise InputError(f"{failures[0].describe()} (--on-error skip continues without it)")
