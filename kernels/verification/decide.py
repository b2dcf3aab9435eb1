"""Which backend runs a call, as a rule of known facts alone.

The order: what was measured to be fastest on this GPU (or on its architecture), else the static order of backends. None
of them runs before its numbers were verified on this machine. What remains is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .store import Verdict

REFERENCE = "reference"
# Of the kernels for GPUs. Triton's come first because every installation has them.
ORDER = ("triton", "cuda")
# Below so many values a pass over them takes a GPU less time than a launch takes the host, so the count of launches
# decides. The references of these two are a handful of launches; a kernel's few are started by Python and gain nothing.
# Those of the others are a dozen and more, which their kernels save at any size.
FEW_VALUES = {"bottleneck_adapter": 2**17, "bias_gelu": 2**17}


class Decision(NamedTuple):
    """What runs a call.

    Attributes:
        backend: perhaps with a plan, as "triton/launches".
        reason: why, as words in parentheses would say.
        missing: the backend that has to be verified before this is final; empty where it is.
        open: whether a kernel would perhaps run, if it could be verified now.
    """

    backend: str
    reason: str
    missing: str = ""
    open: bool = False


def candidates(able: Sequence[str], measured: str, plans: Callable[[str], Sequence[str]]) -> list[str]:
    """Backends in the order in which they are wanted, each followed by its plans by name.

    A backend alone runs what it would choose by itself. Its plans are for the case that this one is wrong.

    Args:
        able: kernels that this installation has for the call.
        measured: the winner, "reference" for instance, or empty where nothing was measured.
        plans: names of a backend's plans for the call.
    """
    if measured == REFERENCE:
        return []
    first = [measured] if measured in able else []
    order = [*first, *(name for name in ORDER if name in able and name not in first)]
    order += [name for name in able if name not in order]
    return [name for backend in order for name in (backend, *(f"{backend}/{plan}" for plan in plans(backend)))]


def decide(
    wanted: Sequence[str], measured: str, verdict_of: Callable[[str], Verdict | None], obstacle: str = ""
) -> Decision:
    """The first candidate that is verified, as long as none before it is still to be.

    Args:
        wanted: as `candidates` gives them.
        measured: the winner, or empty.
        verdict_of: what is known of a candidate.
        obstacle: why nothing can be verified now; then what is known decides.
    """
    if measured == REFERENCE:
        return Decision(REFERENCE, "measured faster than all kernels here")
    wrong = ""
    for name in wanted:
        verdict = verdict_of(name)
        if verdict is None and not obstacle:
            return Decision(REFERENCE, f"{name} is not verified yet", name)
        if verdict is not None and verdict.passed:
            rank = "measured fastest" if name == measured else "not measured, see `m2clip tune`"
            return Decision(name, f"verified here, error {verdict.error:.1f}x PyTorch's; {rank}")
        if verdict is not None and not wrong:
            wrong = f"{name} is off here: {verdict.message}"
    if wrong or not wanted:
        return Decision(REFERENCE, wrong or "there is no kernel for it here")
    return Decision(REFERENCE, f"{wanted[0]} is not verified, and {obstacle}", open=True)
