"""Timing and memory shared by the benchmarks: interleaved rounds, medians with their spread, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import m2clip

RESULTS = Path(__file__).parent / "results"


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    *,
    calls: Mapping[str, int] | None = None,
    before_turn: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round, the variants taking turns so that a slow minute hits them all.

    Args:
        variants: what to time. rounds: turns of each.
        calls: calls in one turn, 1 by default; the seconds are those of one call.
        before_turn: run before every turn, outside the time taken.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            number = calls[name] if calls else 1
            if before_turn is not None:
                before_turn()
            synchronise(device)
            start = time.perf_counter()
            for _ in range(number):
                run()
            synchronise(device)
            seconds[name].append((time.perf_counter() - start) / number)
    return seconds


def calls_for(run: Callable[[], Any], device: torch.device, seconds: float) -> int:
    """How many calls, at least one, fill a turn of so many seconds: with many the clock's own cost does not count."""
    for _ in range(2):  # the first call warms up
        once = interleave({"": run}, 1, device)[""][0]
    return max(1, round(seconds / once))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least, 20th and 80th percentile."""
    values = torch.tensor(seconds, dtype=torch.float64)
    low, middle, high = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median": middle, "min": values.min().item(), "p20": low, "p80": high, "rounds": len(seconds)}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Ratios of the two variants' times round by round."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def resident_gb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def peak_resident_gb() -> float:
    """Largest resident memory of this process since its start."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 2**20


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of cores torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    threads = torch.get_num_threads()
    name = match[1].strip() if match else platform.processor()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def write_results(name: str, device: torch.device, content: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a benchmark's JSON under results/<device>/, with everything that identifies the measurement."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    folder = folder or RESULTS / ("cpu" if device.type == "cpu" else device_name(device).lower().replace(" ", "-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    identity = {
        "benchmark": name,
        "device": device_name(device),
        "m2clip": m2clip.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }
    path.write_text(json.dumps({**identity, **content}, indent=1) + "\n")
    return path
