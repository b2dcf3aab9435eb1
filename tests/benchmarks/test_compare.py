"""benchmarks/compare.py: what it flags, what it lets pass, and what it refuses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.measure import RESULTS, summary

RUN: dict[str, Any] = {
    "benchmark": "adapter_speed",
    "device": "some CPU, 2 threads",
    "commit": "abc",
    "config": {"rounds": 20, "quick": False},
    "cases": [
        {
            "name": "b16",
            "shape": {"clips": 2},
            "passes": {
                "forward": {
                    "flops": 100,
                    "variants": {
                        "m2clip native": {
                            "seconds": summary([1.0, 2.0, 3.0]),
                            "floor_fraction": summary([0.8, 0.9, 1.0]),
                            "speedup_over": {"authors": summary([3.0])},
                        }
                    },
                }
            },
            "peak_memory_bytes": {"m2clip native": 1000},
            "not_run": {"m2clip cuda": "no GPU"},
        }
    ],
}
NATIVE = ("cases", 0, "passes", "forward", "variants", "m2clip native")


def changed(factor: float, *where: str | int, base: dict[str, Any] = RUN) -> dict[str, Any]:
    """A copy of a run with one number, or all of a summary, multiplied."""
    made = copy.deepcopy(base)
    holder: Any = made
    for key in where[:-1]:
        holder = holder[key]
    value = holder[where[-1]]
    scaled = {key: number * factor for key, number in value.items()} if isinstance(value, dict) else value * factor
    holder[where[-1]] = scaled
    return made


def call(tmp_path: Path, before: Any, after: Any, *options: str) -> subprocess.CompletedProcess[str]:
    paths = []
    for name, content in (("a.json", before), ("b.json", after)):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        paths.append(str(path))
    script = Path(compare.__file__)
    return subprocess.run(
        [sys.executable, str(script), *paths, *options], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_same_run_twice(tmp_path: Path) -> None:
    done = call(tmp_path, RUN, RUN)
    assert done.returncode == 0, done.stderr
    assert "+0.0 %           2 -> 2" in done.stdout
    assert "b16 / forward / m2clip native / seconds" in done.stdout
    assert "WORSE" not in done.stdout


@pytest.mark.parametrize(
    ("where", "factor"),
    [
        ((*NATIVE, "seconds"), 1.06),
        ((*NATIVE, "floor_fraction"), 0.94),
        ((*NATIVE, "speedup_over", "authors"), 0.94),
        (("cases", 0, "peak_memory_bytes", "m2clip native"), 1.06),
    ],
)
def test_only_the_bad_direction_is_flagged(tmp_path: Path, where: tuple[str | int, ...], factor: float) -> None:
    worse = changed(factor, *where)
    flagged = call(tmp_path, RUN, worse)
    assert flagged.returncode == 1
    assert flagged.stdout.count("WORSE") == 1
    assert flagged.stdout.splitlines()[-1] == "1 number is worse by more than 5 %"
    assert call(tmp_path, worse, RUN).returncode == 0
    assert call(tmp_path, RUN, worse, "--threshold", "8").returncode == 0


def test_facts_are_printed_and_not_judged(tmp_path: Path) -> None:
    done = call(tmp_path, RUN, changed(2, "cases", 0, "passes", "forward", "flops"))
    assert done.returncode == 0
    assert "+100.0 %" in done.stdout


def test_settings_and_lost_numbers_are_told(tmp_path: Path) -> None:
    after = changed(2, "config", "rounds")
    after["cases"][0]["peak_memory_bytes"] = {"m2clip triton": 1}
    done = call(tmp_path, RUN, after)
    assert "setting differs: config / rounds: 20 -> 40" in done.stdout
    assert "only in the first file: b16 / peak_memory_bytes / m2clip native" in done.stdout
    assert "only in the second file: b16 / peak_memory_bytes / m2clip triton" in done.stdout


def test_only(tmp_path: Path) -> None:
    worse = changed(2.0, *NATIVE, "seconds")
    assert call(tmp_path, RUN, worse, "--only", "peak_memory").returncode == 0
    nothing = call(tmp_path, RUN, worse, "--only", "no such")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("threshold", ["5", "0"])
def test_a_number_that_was_zero(tmp_path: Path, threshold: str) -> None:
    zero = changed(0, "cases", 0, "peak_memory_bytes", "m2clip native")
    assert call(tmp_path, zero, zero, "--threshold", threshold).returncode == 0
    assert call(tmp_path, zero, RUN, "--threshold", threshold).returncode == 1


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ({"device": "some CPU"}, "names no benchmark"),
        ({**RUN, "benchmark": "loss_speed"}, "different benchmarks: adapter_speed and loss_speed"),
        ({**RUN, "device": "another"}, "different devices"),
        ({**RUN, "cases": []}, "no number in common"),
        ('{"benchmark": "adapter_speed", "device": "some CPU, 2 threads", "x": NaN}', "x is nan"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, after: Any, message: str) -> None:
    done = call(tmp_path, RUN, after)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(compare.NotComparable, match="No such file"):
        compare.read(tmp_path / "none.json")


def test_force_compares_devices(tmp_path: Path) -> None:
    assert call(tmp_path, RUN, {**RUN, "device": "another"}, "--force").returncode == 0


def test_pytest_benchmark_files(tmp_path: Path) -> None:
    run = {
        "machine_info": {"cpu": {"brand_raw": "some CPU"}},
        "benchmarks": [{"fullname": "bench_ops.py::bench[x]", "stats": {"median": 1.0, "min": 0.5}}],
    }
    slower = changed(1.2, "benchmarks", 0, "stats", base=run)
    done = call(tmp_path, run, slower)
    assert done.returncode == 1
    assert "+20.0 %" in done.stdout
    assert call(tmp_path, slower, run).returncode == 0
    assert call(tmp_path, run, RUN).returncode == 2
    elsewhere = {**run["benchmarks"][0], "extra_info": {"device": "some CPU, 1 thread"}}
    assert "different devices" in call(tmp_path, run, {**run, "benchmarks": [elsewhere]}).stderr
    broken = call(tmp_path, run, {**run, "benchmarks": [{"name": "bench[x]"}]})
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*_speed.json")), ids=lambda path: path.stem)
def test_every_recorded_timing_reads(path: Path) -> None:
    results = compare.read(path)
    lines, worse = compare.compare(results, results, 0.0)
    assert worse == 0
    assert len(lines) == len(results.numbers) > 5
    assert any(compare.worse_by(name, 1.0, 2.0) == 1.0 for name in results.numbers)
