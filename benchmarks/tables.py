"""Terminal tables of the benchmarks of operations: one for each case and pass.

"vs" is how many times faster than a baseline, "of" the share of the speed of the bare matrix products (floor), of a
copy of the bytes that must move, and on a GPU of the speed at which a large product and a large copy would do the FLOPs
or move the bytes, whichever takes longer (limits). "as graph" is the time of the same work as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2clip.commands.shared.output import console, table

SHARES = {"floor_fraction": "floor", "copy_fraction": "copy", "least_fraction": "limits"}


def unit_for(numbers: Mapping[str, Any]) -> tuple[str, float]:
    """Unit of a pass's times and how many make a second: microseconds where the limit takes less than 0.1 ms."""
    limit = numbers.get("floor") or numbers["copy"]
    return ("us", 1e6) if limit["seconds"]["median"] < 1e-4 else ("ms", 1e3)


def digits(value: float) -> str:
    """Three digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def middle(value: Mapping[str, float] | float) -> float:
    """The median of a summary; of a number itself."""
    return value["median"] if isinstance(value, Mapping) else value


def spread(seconds: Mapping[str, float]) -> str:
    """Distance of the 20th and the 80th percentile, as a share of the median."""
    return f"{100 * (seconds['p80'] - seconds['p20']) / seconds['median']:.0f} %"


def limit_labels(numbers: Mapping[str, Any]) -> dict[str, str]:
    """What is timed beside the variants of a pass, as its row is called."""
    labels = {}
    if "floor" in numbers:
        labels["floor"] = f"floor: {numbers['floor']['gemms']} GEMMs"
    if "copy" in numbers:
        labels["copy"] = f"copy, {numbers['copy']['bandwidth_gb_s']:.0f} GB/s"
    if "gemm" in numbers:
        labels["gemm"] = f"GEMM, {numbers['gemm']['throughput_tflop_s']:.0f} TFLOP/s"
    return labels


def columns(numbers: Mapping[str, Any], peaks: Mapping[str, int], factor: float) -> dict[str, dict[str, str]]:
    """By header, the cells of the variants that have one."""
    variants = numbers["variants"]
    found: dict[str, dict[str, str]] = {}
    for title in dict.fromkeys(title for own in variants.values() for title in own["speedup_over"]):
        header = f"vs\n{title.split()[0].removeprefix('torch.')}"
        over = {name: own["speedup_over"].get(title) for name, own in variants.items()}
        found[header] = {name: f"{value['median']:.2f}x" for name, value in over.items() if value}
    for key, title in SHARES.items():
        found[f"of\n{title}"] = {
            name: f"{100 * middle(own[key]):.0f} %" for name, own in variants.items() if key in own
        }
    graphs = {name: own["graph_seconds"]["median"] for name, own in variants.items() if "graph_seconds" in own}
    found["as\ngraph"] = {name: digits(seconds * factor) for name, seconds in graphs.items()}
    found["peak\nMB"] = {name: digits(peak / 1e6) for name, peak in peaks.items()}
    return {header: cells for header, cells in found.items() if cells}


def show(result: Mapping[str, Any], title: str) -> None:
    """Print a case of a benchmark's JSON."""
    peaks, last = result.get("peak_memory_bytes", {}), list(result["passes"])[-1]
    for which, numbers in result["passes"].items():
        unit, factor = unit_for(numbers)
        more = columns(numbers, peaks if which == last else {}, factor)
        labels = {name: name for name in numbers["variants"]} | limit_labels(numbers)
        rows = []
        for name, label in labels.items():
            seconds = (numbers["variants"].get(name) or numbers[name])["seconds"]
            cells = (column.get(name, "-") for column in more.values())
            rows.append((label, digits(seconds["median"] * factor), spread(seconds), *cells))
        print(f"\n{result['name']}, {which} in {unit}: {title}")
        header = ("", "median", "spread", *more)
        console().print(table(header, rows, numbers=len(header) - 1))
    show_missing(result["not_run"])
    unknown = result.get("memory_unknown", {})
    for reason in sorted(set(unknown.values())):
        names = [name for name, other in unknown.items() if other == reason]
        print(f"memory of {', '.join(names) if peaks else 'all'}: not measured, {reason}")


def show_missing(not_run: Mapping[str, str]) -> None:
    for name, reason in not_run.items():
        print(f"{name}: not run, {reason}")
