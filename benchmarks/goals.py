"""What was aimed at and what was measured, as one table; every other shape in which the library is not the fastest.

    python benchmarks/goals.py                                # benchmarks/results/cpu and the folders of GPUs
    python benchmarks/goals.py build/gpu/results --markdown

Reads the JSON files of a results folder. Of several backends and plans the one counts that backend="auto" takes, the
reference as well, and not a faster one that nobody gets. A goal without a result is "not measured yet".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import RESULTS
from benchmarks.train_variants import COMPILED as STEP_COMPILED
from benchmarks.train_variants import COMPILED_GRAPH, GRAPH, OURS
from m2clip.commands.shared.output import console, table

FORWARD, BOTH = "forward", "forward+backward"
MAIN, NARROW = "b16-r384", "b16-r64"
FILES = ("adapter_speed", "mixer_speed", "bottleneck_speed", "msta_speed", "loss_speed", "train_speed")
AUTHORS, COMPILED, EAGER = "authors", "torch.compile", "eager reference"
HEADER = ("", "goal", "measured", "")


@dataclass(frozen=True)
class Found:
    """Results of one device, by benchmark; those that are missing are empty."""

    files: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Found:
        return cls({name: _content(folder / f"{name}.json") for name in FILES})

    @property
    def device(self) -> str:
        return next((content["device"] for content in self.files.values() if content), "")

    def case(self, benchmark: str, name: str) -> Mapping[str, Any]:
        cases = self.files[benchmark].get("cases", ())
        return next((case for case in cases if case["name"] == name), {})

    def own(self, benchmark: str, name: str, which: str) -> tuple[str, Mapping[str, Any]]:
        """Our variant of a case and pass, with its numbers; ("", {}) where there is none."""
        case = self.case(benchmark, name)
        return _own(case, case.get("passes", {}).get(which, {}))


def _content(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _own(case: Mapping[str, Any], numbers: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    name, variants = case.get("auto", ""), numbers.get("variants", {})
    return (name, variants[name]) if name in variants else ("", {})


@dataclass(frozen=True)
class Goal:
    """One number: at least, or at most, so much."""

    what: str
    wanted: float
    value: Callable[[Found], float | None]
    unit: str = "x"  # x: times faster; %: a share, given as a fraction; s: seconds; launches
    at_most: bool = False

    def row(self, found: Found) -> tuple[str, str, str, str]:
        value = self.value(found)
        goal = f"{'≤' if self.at_most else '≥'} {self.text(self.wanted)}"
        if value is None:
            return self.what, goal, "not measured yet", ""
        met = value <= self.wanted if self.at_most else value >= self.wanted
        return self.what, goal, self.text(value), "met" if met else "missed"

    def text(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        return f"{value:.2f}x" if self.unit == "x" else f"{value:.3g} {self.unit}"


def speedup(benchmark: str, case: str, which: str, over: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        ratio = found.own(benchmark, case, which)[1].get("speedup_over", {}).get(over)
        return ratio and ratio["median"]

    return value


def share(benchmark: str, case: str, which: str, kind: str) -> Callable[[Found], float | None]:
    """Of the floor, of the copy's bandwidth, or of both ceilings: floor_, copy_ or least_fraction."""

    def value(found: Found) -> float | None:
        fraction = found.own(benchmark, case, which)[1].get(kind)
        return fraction["median"] if isinstance(fraction, dict) else fraction

    return value


def memory(benchmark: str, case: str, other: str) -> Callable[[Found], float | None]:
    """Of our variant, as a share of another one's."""

    def value(found: Found) -> float | None:
        peaks = found.case(benchmark, case).get("peak_memory_bytes", {})
        ours = peaks.get(found.own(benchmark, case, BOTH)[0])
        return ours / peaks[other] if ours and other in peaks else None

    return value


def training(*path: str) -> Callable[[Found], float | None]:
    """A number of our fastest step on the backends of "auto", by the keys that lead to it; "*" stands for its name."""

    def value(found: Found) -> float | None:
        content: Any = found.files["train_speed"]
        times = content.get("seconds", {})
        fastest = min(
            times.keys() & {OURS, GRAPH, STEP_COMPILED, COMPILED_GRAPH},
            key=lambda name: times[name]["median"],
            default="",
        )
        for key in path:
            content = content.get(fastest if key == "*" else key) if isinstance(content, dict) else None
        return content

    return value


def of_loss(key: str) -> Callable[[Found], float | None]:
    return lambda found: found.own("loss_speed", "k400", FORWARD)[1].get(key)


ADAPTER, TRAINING = "ted_adapter B/16, T=8, R=384", "training step, B/16, 8 frames, K400"
MSTA = "msta_adapter B/16, T=8, d=256"
GPU_GOALS = (
    Goal(f"{ADAPTER}, forward, over the authors' code", 3.0, speedup("adapter_speed", MAIN, FORWARD, AUTHORS)),
    Goal(f"{ADAPTER}, forward, over torch.compile", 1.6, speedup("adapter_speed", MAIN, FORWARD, COMPILED)),
    Goal(f"{ADAPTER}, forward, of the floor", 0.70, share("adapter_speed", MAIN, FORWARD, "least_fraction"), "%"),
    Goal(f"{ADAPTER}, with backward, over the authors' code", 3.0, speedup("adapter_speed", MAIN, BOTH, AUTHORS)),
    Goal(f"{ADAPTER}, with backward, over torch.compile", 1.5, speedup("adapter_speed", MAIN, BOTH, COMPILED)),
    Goal(f"{ADAPTER}, with backward, of the floor", 0.65, share("adapter_speed", MAIN, BOTH, "least_fraction"), "%"),
    Goal(f"{ADAPTER}, memory of the authors'", 0.50, memory("adapter_speed", MAIN, "authors eager"), "%", at_most=True),
    Goal("ted_adapter R=64, forward, of the copy", 0.70, share("adapter_speed", NARROW, FORWARD, "copy_fraction"), "%"),
    Goal("mixer, forward, of the copy", 0.80, share("mixer_speed", MAIN, "forward", "copy_fraction"), "%"),
    Goal("mixer, backward, of the copy", 0.70, share("mixer_speed", MAIN, "backward", "copy_fraction"), "%"),
    Goal(f"{MSTA}, forward, over nn.Conv3d on permuted tokens", 3.0, speedup("msta_speed", "clip", FORWARD, EAGER)),
    Goal(f"{MSTA}, forward, over torch.compile", 1.6, speedup("msta_speed", "clip", FORWARD, COMPILED)),
    Goal(f"{MSTA}, forward, of the floor", 0.70, share("msta_speed", "clip", FORWARD, "floor_fraction"), "%"),
    Goal(f"{MSTA}, with backward, over nn.Conv3d", 2.0, speedup("msta_speed", "clip", BOTH, EAGER)),
    Goal(f"{MSTA}, with backward, over torch.compile", 1.5, speedup("msta_speed", "clip", BOTH, COMPILED)),
    Goal(f"{MSTA}, with backward, of the floor", 0.65, share("msta_speed", "clip", BOTH, "floor_fraction"), "%"),
    Goal(f"{MSTA}, memory of nn.Conv3d's", 0.70, memory("msta_speed", "clip", EAGER), "%", at_most=True),
    Goal("cosine_cross_entropy 64x400, with backward", 4.0, speedup("loss_speed", "k400", BOTH, EAGER)),
    Goal("cosine_cross_entropy, forward", 1, of_loss("launches"), "launches", at_most=True),
    Goal("cosine_cross_entropy, forward", 0, of_loss("waits"), "waits for the GPU", at_most=True),
    Goal(f"{TRAINING}, over the authors' code", 2.5, training("speedup", "*", "median")),
    Goal(
        f"{TRAINING}, memory of the authors'",
        0.50,
        training("memory_ratio", "*", "peak_gb"),
        "%",
        at_most=True,
    ),
    Goal(f"{TRAINING}, of the matmul peak", 0.45, training("peak_fraction", "*"), "%"),
    Goal(f"{TRAINING}, first step", 20, training("first_step_seconds", "*"), "s", at_most=True),
)
CPU_GOALS = (
    Goal(f"{ADAPTER}, forward, of the floor", 0.90, share("adapter_speed", MAIN, FORWARD, "floor_fraction"), "%"),
    Goal(f"{ADAPTER}, with backward, of the floor", 0.90, share("adapter_speed", MAIN, BOTH, "floor_fraction"), "%"),
    Goal(f"{ADAPTER}, forward, over the authors' code", 1.4, speedup("adapter_speed", MAIN, FORWARD, AUTHORS)),
    Goal(f"{ADAPTER}, with backward, over the authors' code", 1.6, speedup("adapter_speed", MAIN, BOTH, AUTHORS)),
    Goal(f"{ADAPTER}, forward, over torch.compile", 1.15, speedup("adapter_speed", MAIN, FORWARD, COMPILED)),
    Goal(f"{ADAPTER}, with backward, over torch.compile", 1.15, speedup("adapter_speed", MAIN, BOTH, COMPILED)),
    Goal("ted_adapter R=64, forward, over the authors' code", 2.5, speedup("adapter_speed", NARROW, FORWARD, AUTHORS)),
    Goal("ted_adapter R=64, with backward, over the authors'", 2.5, speedup("adapter_speed", NARROW, BOTH, AUTHORS)),
    Goal(f"{MSTA}, forward, of the floor", 0.90, share("msta_speed", "clip", FORWARD, "floor_fraction"), "%"),
    Goal(f"{MSTA}, with backward, of the floor", 0.90, share("msta_speed", "clip", BOTH, "floor_fraction"), "%"),
    Goal(f"{MSTA}, forward, over nn.Conv3d on permuted tokens", 1.4, speedup("msta_speed", "clip", FORWARD, EAGER)),
    Goal(f"{MSTA}, with backward, over nn.Conv3d", 1.6, speedup("msta_speed", "clip", BOTH, EAGER)),
    Goal(f"{MSTA}, forward, over torch.compile", 1.15, speedup("msta_speed", "clip", FORWARD, COMPILED)),
    Goal(f"{MSTA}, with backward, over torch.compile", 1.15, speedup("msta_speed", "clip", BOTH, COMPILED)),
)


def lost(found: Found) -> Iterator[str]:
    """Every case and pass in which another variant is faster than ours, a line each."""
    for benchmark in FILES:
        for case in found.files[benchmark].get("cases", ()):
            for which, numbers in case["passes"].items():
                name, own = _own(case, numbers)
                times = {other: its["seconds"]["median"] for other, its in numbers["variants"].items()}
                best = min(times, key=lambda other: times[other], default="")
                slower = own["seconds"]["median"] / times[best] if name else 1.0
                if slower >= 1.005:
                    yield f"{benchmark} {case['name']}, {which}: {name} takes {slower:.2f} times as long as {best}"
                elif not name and numbers["variants"]:
                    yield f"{benchmark} {case['name']}, {which}: nothing of ours ran"


def goals_of(found: Found) -> Sequence[Goal]:
    return CPU_GOALS if "thread" in found.device else GPU_GOALS


def folders() -> list[Path]:
    """The CPU's results and those of every GPU; an empty place for a GPU where there is none."""
    gpus = sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name != "cpu")
    return [RESULTS / "cpu", *(gpus or [RESULTS / "gpu"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of results (default: all of ours)")
    parser.add_argument("--markdown", action="store_true", help="as tables for a README")
    args = parser.parse_args()
    for folder in args.folders or folders():
        found = Found.read(folder)
        rows = [goal.row(found) for goal in goals_of(found)]
        title = found.device or "GPU"
        if args.markdown:
            print(f"\n{title}:\n\n| | goal | measured | |\n|---|---:|---:|---|")
            print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        else:
            print(f"\n{title}")
            console().print(table(HEADER, rows))
        behind = list(lost(found))
        if behind:
            print("\nNot the fastest:" + ("\n" if args.markdown else ""))
            print("\n".join(f"{'- ' if args.markdown else '  '}{line}" for line in behind))


if __name__ == "__main__":
    main()
