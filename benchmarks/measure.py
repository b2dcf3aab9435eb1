"""What all benchmarks share: options, interleaved rounds, medians with their spread, results as JSON."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import time
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

import m2clip

Key = TypeVar("Key", bound=Hashable)
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def interleave(
    variants: Mapping[Key, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    *,
    calls: Mapping[Key, int] | None = None,
    before_turn: Callable[[], Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Seconds of every variant in every round, the variants taking turns so that a slow minute hits them all.

    Args:
        variants: what to time. rounds: turns of each.
        calls: calls in one turn, 1 by default; the seconds are those of one call.
        before_turn: run before every turn, on a GPU before every call, outside the time taken.
        clock: of a CPU, in seconds.

    On a GPU the time is its own, between two events. Calls follow each other without waiting for the processor, whose
    overhead therefore counts only where it is longer than the work on the GPU.
    """
    turn = _gpu_turn if device.type == "cuda" else partial(_cpu_turn, clock)
    seconds: dict[Key, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            seconds[name].append(turn(run, calls[name] if calls else 1, before_turn))
    return seconds


def _cpu_turn(
    clock: Callable[[], float], run: Callable[[], Any], number: int, before: Callable[[], Any] | None
) -> float:
    if before is not None:
        before()
    start = clock()
    for _ in range(number):
        run()
    return (clock() - start) / number


def _gpu_turn(run: Callable[[], Any], number: int, before: Callable[[], Any] | None) -> float:
    group = number if before is None else 1  # calls between two events
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(number // group)
    ]
    torch.cuda.synchronize()
    for start, end in marks:
        if before is not None:
            before()
        start.record()
        for _ in range(group):
            run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks) / 1e3 / group


def calls_for(run: Callable[[], Any], device: torch.device, seconds: float) -> int:
    """How many calls, at least one, fill a turn of so many seconds: with many the clock's own cost does not count."""
    for _ in range(2):  # the first call warms up
        once = interleave({"": run}, 1, device)[""][0]
    return max(1, round(seconds / once))


def parser(description: str | None, *options: str, rounds: int = 20, writes: str = "JSON and PNG") -> ArgumentParser:
    """The command line of a benchmark: --out, and of --device, --rounds, --threads and --budget those named."""
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    known: dict[str, dict[str, Any]] = {
        "--device": {"default": "cuda" if torch.cuda.is_available() else "cpu"},
        "--rounds": {"type": int, "default": rounds},
        "--threads": {"type": int, "default": torch.get_num_threads(), "help": "CPU threads"},
        "--budget": {"type": float, "metavar": "SECONDS", "help": "leave out the cases, last ones first, beyond it"},
    }
    for name in options:
        made.add_argument(name, **known[name])
    folder = f"folder of {writes} (default: benchmarks/results/<device>)"
    made.add_argument("--out", "--output", type=Path, help=folder)
    return made


class Budget:
    """Seconds that a benchmark may take, from now on; None for as many as it needs.

    What compiles begins in the first six tenths alone; what does not fit is left out altogether, and told.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start = seconds, time.monotonic()
        self.left_out: list[str] = []

    def allows(self, name: str) -> bool:
        """Whether to begin with a shape; what is refused is kept under `left_out`."""
        if self._share() < 0.85:
            return True
        self.left_out.append(name)
        return False

    def allows_compiling(self) -> bool:
        return self._share() < 0.6

    def rounds(self, wanted: int) -> int:
        """Half as many where time is limited."""
        return wanted if self.seconds is None else max(wanted // 2, 1)

    def _share(self) -> float:
        return 0.0 if self.seconds is None else (time.monotonic() - self.start) / self.seconds


def overwritten_caches(device: torch.device, size: int) -> Callable[[], Any]:
    """What leaves nothing of earlier calls in the caches.

    A GPU reads a buffer of four times the size, and so has nothing to write back during the call that follows. A CPU
    writes one of that size.
    """
    if device.type != "cuda":
        buffer = torch.ones(size, dtype=torch.uint8)
        return lambda: buffer.fill_(1)
    values = torch.ones(size, device=device)  # of four bytes
    return values.amax


def recorded(run: Callable[[], Any]) -> Callable[[], None]:
    """The same work on the current GPU as a graph: recorded now, replayed by every call at no cost to the processor."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazily made handles and compiled kernels cannot be recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def launches(run: Callable[[], Any]) -> int:
    """Kernels, copies and fills that a call starts on the current GPU."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def waits(run: Callable[[], Any]) -> int:
    """How often a call lets the processor wait for the current GPU."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in told)


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


def reason(met: Exception) -> str:
    """A failure in one line."""
    return f"{type(met).__name__}: {(str(met).strip().splitlines() or [''])[0]}"


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of cores torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    threads = torch.get_num_threads()
    name = match[1].strip() if match else platform.processor()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def commit() -> str:
    """Of this checkout, or what a file COMMIT in it says where git does not know; else "unknown"."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with suppress(OSError):
        return (ROOT / "COMMIT").read_text().strip()
    return "unknown"


def write_results(name: str, device: torch.device, content: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a benchmark's JSON under results/<device>/, with everything that identifies the measurement."""
    folder = folder or RESULTS / ("cpu" if device.type == "cpu" else device_name(device).lower().replace(" ", "-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    identity = {
        "benchmark": name,
        "device": device_name(device),
        "m2clip": m2clip.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }
    path.write_text(json.dumps({**identity, **content}, indent=1) + "\n")
    return path
