"""Terminal tables of adapter_speed.py: one for each case and pass.

Spread is the distance of the 20th and the 80th percentile over the median. "vs" is how many times faster than the best
of the authors' formulation and than the best under torch.compile, "of" the share of the speed of the bare GEMMs and of
a copy of the bytes that must move. On a GPU "of limits" is the share of the speed at which a large GEMM and a large
copy would do the FLOPs or move the bytes, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.adapter_variants import PASSES
from m2clip.commands.output import console, print_line, table

HEADER = ("median", "spread", "vs\nauthors", "vs\ncompile", "of\nfloor", "of\ncopy")


def title(shape: Mapping[str, Any]) -> str:
    """A case in one line."""
    height, width = shape["grid"]
    tokens = f"B={shape['clips']} T={shape['frames']} {height}x{width}+1 D={shape['dim']} R={shape['width']}"
    shared = " shared projections" if shape["projections"] == "shared" else ""
    return f"{tokens} {shape['dtype']}{shared}"


def unit_for(numbers: Mapping[str, Any]) -> tuple[str, float]:
    """Unit of a pass's times and how many make a second: microseconds where the GEMMs take less than 0.1 ms."""
    return ("us", 1e6) if numbers["floor"]["seconds"]["median"] < 1e-4 else ("ms", 1e3)


def digits(value: float) -> str:
    """Three digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def copy_label(copy: Mapping[str, Any]) -> str:
    return f"copy, {copy['bandwidth_gb_s']:.0f} GB/s"


def show(result: Mapping[str, Any]) -> None:
    """Print a case of adapter_speed.json."""
    for which, numbers in result["passes"].items():
        unit, factor = unit_for(numbers)

        def times(seconds: Mapping[str, float], factor: float = factor) -> tuple[str, str]:
            middle = seconds["median"]
            return digits(middle * factor), f"{100 * (seconds['p80'] - seconds['p20']) / middle:.0f} %"

        peaks = result["peak_memory_bytes"] if which == PASSES[1] else {}
        rows = []
        for name, own in numbers["variants"].items():
            over = own["speedup_over"]
            ratios = [f"{over[key]['median']:.2f}x" if key in over else "-" for key in ("authors", "torch.compile")]
            shares = [f"{100 * own['floor_fraction']['median']:.0f} %", f"{100 * own['copy_fraction']:.0f} %"]
            if "least_fraction" in own:
                shares.append(f"{100 * own['least_fraction']:.0f} %")
            memory = [digits(peaks[name] / 1e6) if name in peaks else "-"] if peaks else []
            rows.append([name, *times(own["seconds"]), *ratios, *shares, *memory])
        labels = {"floor": f"floor: {numbers['floor']['gemms']} GEMMs", "copy": copy_label(numbers["copy"])}
        if "gemm" in numbers:
            labels["gemm"] = f"GEMM, {numbers['gemm']['throughput_tflop_s']:.0f} TFLOP/s"
        for name, label in labels.items():
            label_and_times = [label, *times(numbers[name]["seconds"])]
            rows.append(label_and_times + ["-"] * (len(rows[0]) - len(label_and_times)))
        limits = ["of\nlimits"] if "least_seconds" in numbers else []
        header = ("", *HEADER, *limits, *(["peak\nMB"] if peaks else []))
        print_line(f"\n{result['name']}, {which} in {unit}: {title(result['shape'])}")
        console().print(table(header, rows, numbers=len(header) - 1))
    for name, reason in result["not_run"].items():
        print_line(f"{name}: not run, {reason}")
    for reason in sorted(set(result["memory_unknown"].values())):
        names = [name for name, other in result["memory_unknown"].items() if other == reason]
        print_line(f"memory of {', '.join(names) if result['peak_memory_bytes'] else 'all'}: not measured, {reason}")
