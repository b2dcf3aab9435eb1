"""`m2clip selfcheck`: are the kernels right on this machine?"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import console, print_json, print_line, progress_bar, table
from m2clip.commands.shared.parsing import add_command, add_json
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.kernels.selfcheck import Check

EXAMPLE = """  m2clip selfcheck
  m2clip selfcheck --all --backend native --json"""
NAMED = 3  # wrong tensors of one row of the table that are named; --json has them all


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "selfcheck", run, "Compare every kernel with the reference in double precision", EXAMPLE
    )
    parser.add_argument("--backend", help="only this kernel backend (default: all that this machine can run)")
    parser.add_argument("--all", action="store_true", help="every case in every dtype; by default these take turns")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print a table or one JSON value; exit code 1 if a kernel is wrong."""
    from m2clip.kernels.dispatch import backend_states
    from m2clip.kernels.selfcheck import backends_to_check, run_checks

    try:
        backends = backends_to_check(args.backend)
    except ValueError as error:
        raise InputError(str(error)) from None
    with progress_bar("checking", not args.json) as report:
        checks = run_checks(backends, report, args.all)
    off = {state.name: state.reason for state in backend_states().values() if not state.available}
    failed = [check for check in checks if not check.passed]
    if args.json:
        print_json({"passed": not failed, "checks": [_json(check) for check in checks], "not_checked": off})
    else:
        _print(checks, failed, off)
    if failed:
        sys.stdout.flush()
        sys.exit(1)


def _print(checks: Sequence[Check], failed: Sequence[Check], off: dict[str, str]) -> None:
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.op, check.backend, check.dtype), []).append(check)
    # A table for each operation: one for all would be too wide for a terminal of 80 columns.
    for op in dict.fromkeys(check.op for check in checks):
        rows = [(*group[1:], *_cells(members)) for group, members in groups.items() if group[0] == op]
        console().print(op)
        console().print(table(("backend", "dtype", "output", "gradients", ""), rows))
    print_line(
        "Error / what is allowed: the worst as shares of a tensor's largest true value. Allowed is twice the error of"
    )
    print_line(
        "plain PyTorch in the same dtype, three times for gradients, and roundings; of its root mean square, half"
    )
    print_line("as much again.")
    for name, reason in off.items():
        print_line(f"not checked: {name} ({reason})")
    for (op, backend, dtype), members in groups.items():
        wrong = sorted((check for check in members if not check.passed), key=_badness, reverse=True)
        for check in wrong[:NAMED]:
            usual = "usually " if check.kind == "usual" else ""
            what = check.message or f"{check.tensor} is {usual}off by {check.error:.2g}, allowed {check.bound:.2g}"
            print_line(f"WRONG: {op}, {backend}, {dtype}, {check.case}: {what}")
        if len(wrong) > NAMED:
            print_line(f"WRONG: {op}, {backend}, {dtype}: {len(wrong) - NAMED} more")
    cases = len({(check.op, check.case) for check in checks})
    print_line(f"{len(checks)} tensors of {cases} cases: {f'{len(failed)} WRONG' if failed else 'all right'}")


def _cells(members: Sequence[Check]) -> tuple[str, ...]:
    """The worst output and the worst gradient, each with its bound, and the verdict."""
    cells = []
    for outputs in (True, False):
        kind = [check for check in members if (check.tensor == "output") == outputs]
        worst = max(kind, key=_badness, default=None)
        if worst is None:
            cells.append("-")
        else:
            cells.append("raised" if worst.message else f"{worst.error:.1e} / {worst.bound:.1e}")
    return *cells, "ok" if all(check.passed for check in members) else "WRONG"


def _badness(check: Check) -> float:
    """Error over bound; a NaN is the worst of all."""
    return check.error / check.bound if check.bound and math.isfinite(check.error) else math.inf


def _json(check: Check) -> dict[str, Any]:
    """JSON knows no infinity and no NaN."""
    return {**check._asdict(), "error": check.error if math.isfinite(check.error) else None, "passed": check.passed}
