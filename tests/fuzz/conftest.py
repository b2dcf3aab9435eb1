"""How many cases were run, and what became of them."""

from __future__ import annotations

from typing import Any

from tests.fuzz.mutations import FULL, outcomes


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not outcomes or not FULL:
        return
    terminalreporter.section(f"{sum(outcomes.values())} cases")
    for target in sorted({target for target, _ in outcomes}):
        found = {outcome: count for (name, outcome), count in outcomes.items() if name == target}
        terminalreporter.line(f"{target}: " + ", ".join(f"{count} {outcome}" for outcome, count in found.items()))
