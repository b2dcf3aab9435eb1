"""What changed between two result files of the same benchmark, ours or pytest-benchmark's.

    python benchmarks/compare.py before.json after.json
    python benchmarks/compare.py before.json after.json --only "m2clip native" --threshold 3

Prints every number with its change; a summary of rounds counts as its median. Exit code 1 if a time or a memory grew,
or a speedup, a share or a bandwidth fell, by more than the threshold; 2 if the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = ("config", "setting", "shape")  # what was measured, not what came out
CONTAINERS = ("cases", "passes", "variants")  # levels whose names tell a reader nothing
BETTER_HIGH = ("speedup", "fraction", "bandwidth", "throughput")
BETTER_LOW = ("seconds", "memory", "peak", "overhead", "error")


class NotComparable(Exception):
    """Why two files cannot be compared, in one line."""


@dataclass(frozen=True)
class Results:
    """One result file: what it measured, where, under which settings, and its numbers by name."""

    benchmark: str
    device: str
    settings: dict[str, Any]
    numbers: dict[str, float]


def read(path: Path) -> Results:
    """A result file of either kind. NotComparable where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotComparable(f"{path}: {error.strerror}") from None
    except ValueError:
        raise NotComparable(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise NotComparable(f"{path} is not a benchmark's result: it holds no JSON object")
    if isinstance(content.get("benchmarks"), list) and isinstance(content.get("machine_info"), dict):
        machine = content["machine_info"].get("cpu", {}).get("brand_raw", "")
        try:
            # Our own suite tells the device, with the number of threads.
            device = ", ".join(
                sorted({each.get("extra_info", {}).get("device", machine) for each in content["benchmarks"]})
            )
            leaves = [((each["fullname"], "seconds"), each["stats"]["median"]) for each in content["benchmarks"]]
        except (KeyError, TypeError, AttributeError):
            raise NotComparable(f"{path}: a benchmark in it lacks its name or its median") from None
        return Results("pytest-benchmark", device, {}, _numbers(path, leaves))
    if not (isinstance(content.get("benchmark"), str) and isinstance(content.get("device"), str)):
        raise NotComparable(f"{path} is not a benchmark's result: it names no benchmark and no device")
    leaves = list(_leaves(content, ()))
    settings = {_name(at): value for at, value in leaves if set(at) & set(SETTINGS)}
    measured = [(at, value) for at, value in leaves if not set(at) & set(SETTINGS)]
    return Results(content["benchmark"], content["device"], settings, _numbers(path, measured))


def _leaves(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is not a container, with the names that lead to it; of a summary only the median."""
    if isinstance(value, dict):
        if "median" in value and "p20" in value:
            yield at, value["median"]
            return
        for key, inner in value.items():
            yield from _leaves(inner, (*at, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            name = inner.get("name") if isinstance(inner, dict) else None
            yield from _leaves(inner, (*at, str(place) if name is None else name))
    else:
        yield at, value


def _numbers(path: Path, leaves: list[tuple[tuple[str, ...], Any]]) -> dict[str, float]:
    numbers = {
        _name(at): value for at, value in leaves if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NotComparable(f"{path}: {name} is {value}")
    return numbers


def _name(at: tuple[str, ...]) -> str:
    return " / ".join(part for part in at if part not in CONTAINERS)


def worse_by(name: str, before: float, after: float) -> float | None:
    """By what share a number got worse (negative: better); None for one that is neither good nor bad."""
    for part in reversed(name.split(" / ")):
        if any(word in part for word in BETTER_HIGH):
            before, after = after, before
            break
        if any(word in part for word in BETTER_LOW):
            break
    else:
        return None
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return after / before - 1


def compare(before: Results, after: Results, threshold: float, only: str = "") -> tuple[list[str], int]:
    """Lines to print, and how many numbers got worse by more than the threshold (a share, 0.05 for 5 %)."""
    shared = [name for name in before.numbers if name in after.numbers and only in name]
    if not shared:
        raise NotComparable("the two files have no number in common" + (f" whose name holds {only!r}" if only else ""))
    lines, worse = [], 0
    for name in sorted(before.settings.keys() | after.settings.keys()):
        old, new = before.settings.get(name), after.settings.get(name)
        if old != new:
            lines.append(f"setting differs: {name}: {old} -> {new}")
    for name in shared:
        old, new = before.numbers[name], after.numbers[name]
        loss = worse_by(name, old, new)
        regressed = loss is not None and loss > threshold
        worse += regressed
        change = f"{100 * (new / old - 1):+.1f} %" if old else ("0 %" if new == old else "new")
        lines.append(f"{'WORSE' if regressed else '':6}{change:>10}  {old:>10.5g} -> {new:<10.5g}  {name}")
    for title, mine, other in (("first", before.numbers, after.numbers), ("second", after.numbers, before.numbers)):
        lines += [f"only in the {title} file: {name}" for name in mine if name not in other and only in name]
    return lines, worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=5.0, metavar="PERCENT")
    parser.add_argument("--only", default="", metavar="TEXT", help="only numbers whose name holds this")
    parser.add_argument("--force", action="store_true", help="compare results of different devices too")
    args = parser.parse_args()
    try:
        before, after = read(args.before), read(args.after)
        if before.benchmark != after.benchmark:
            raise NotComparable(f"different benchmarks: {before.benchmark} and {after.benchmark}")
        if before.device != after.device and not args.force:
            raise NotComparable(f"different devices: {before.device!r} and {after.device!r} (--force compares anyway)")
        lines, worse = compare(before, after, args.threshold / 100, args.only)
    except NotComparable as reason:
        print(reason, file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))
    print(f"{worse} {'number is' if worse == 1 else 'numbers are'} worse by more than {args.threshold:g} %")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
