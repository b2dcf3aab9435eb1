"""What a run may go on with other than it began: more epochs when it has finished, other processes for one batch."""

from __future__ import annotations

from typing import Any

from m2clip.errors import InputError
from m2clip.train.state import Progress

_EPOCHS, _PROCESSES, _BATCH = "optim.epochs", "processes", "optim.batch_size"


def accept_changes(saved: dict[str, Any], current: dict[str, Any], progress: Progress, by_episodes: bool) -> list[str]:
    """Make an earlier identity of a run agree with the present one in what may change; returns a line for each change.

    A finished run goes on for more epochs: the steps to come have the learning rates that a run of all has there.
    Clips of a forward pass may be shared out among other processes, where batch_size x processes is the same: every
    step then has the same clips, augmentation and masked words. Only dropout is drawn anew.

    Args:
        saved: identity of the run in the checkpoint (`m2clip.train.setup.run_identity`); is changed.
        current: that of this call.
        progress: how far training had come.
        by_episodes: whether a process takes an episode, in place of a batch.

    Raises:
        InputError: another number of clips per pass, with the ways out.
    """
    lines = []
    before, now = saved[_EPOCHS], current[_EPOCHS]
    if now > before and progress.epoch >= before:
        saved[_EPOCHS] = now
        lines.append(f"the run had finished its {before} epochs and goes on to {now}, at the learning rates of {now}")
    old, new = ((one[_PROCESSES], 1 if by_episodes else one[_BATCH]) for one in (saved, current))
    if old == new or old[0] == new[0]:
        return lines
    clips, what = old[0] * old[1], "episodes" if by_episodes else "clips"
    if clips != new[0] * new[1]:
        ways = [f"start {_count(old[0])}"]
        if not by_episodes and clips % new[0] == 0:
            ways.append(f"set optim.batch_size={clips // new[0]}")
        raise InputError(
            f"the run was trained on {_count(old[0])}, {clips} {what} per forward pass in all, and would go on with "
            f"{new[0] * new[1]} on {_count(new[0])}: {' or '.join(ways)}"
        )
    saved[_PROCESSES], saved[_BATCH] = current[_PROCESSES], current[_BATCH]
    lines.append(f"goes on on {_count(new[0])} in place of {old[0]}, with the same batches; dropout is drawn anew")
    return lines


def _count(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"
