"""Few-shot recognition by episodes on the moving shapes: MA-FSAR, each of its two parts alone, and neither.

    python studies/episodes.py --folder comparison --jobs 2

Trains the three models on three quarters of the base classes, by episodes of one shot, and scores them on the same
1,000 episodes of the novel classes, 5-way with 1 and 5 shots. Then what 10,000 episodes cost once the features of the
videos are kept: seconds and memory of the whole command. All of it through `m2clip episodes`. Runs are kept in the
folder, and a stopped call resumes where it stopped. Writes benchmarks/results/cpu/episodes.json and docs/episodes.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2clip.data.built_in.rendered_set import render_built_in
from studies import runner

# The presets of Table 3 of the paper.
MODELS = {
    "frozen CLIP + OTAM": "frozen",
    "prototypes alone": "tpcm",
    "adaptation alone": "adaptation",
    "MA-FSAR": "paper",
}
# As many clips as the other methods see in studies/comparison.py, and half as many again.
TRAINING = ("episodes.per_epoch=320", "optim.epochs=3", "optim.warmup_epochs=0.3", "data.workers=0")
SHOTS, EPISODES, MANY = (1, 5), 1_000, 10_000
HEADS = ("matching", "text", "fused")
CLIPS = {"train": 32, "val": 10}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "m2clip.cli", "episodes", *map(str, words)]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(folder: Path, preset: str) -> None:
    """Train a preset, unless an earlier call has finished it."""
    words: list[str | Path] = ["train", "--config", "ma_fsar_demo", *built_in(folder)]
    words += ["--output", run_folder(folder, preset), "--json", "--device", "cpu", "--model.preset", preset]
    for setting in TRAINING:
        field, _, value = setting.partition("=")
        words += [f"--{field}", value]
    subprocess.run(command(*words), check=True, env=one_thread(), stdout=subprocess.DEVNULL)


def score(folder: Path, preset: str, episodes: int) -> tuple[list[dict[str, Any]], float, int]:
    """Results by shots, and the command's seconds and peak memory in bytes."""
    model: list[str | Path] = [run_folder(folder, preset)]
    if preset == "frozen":
        model = ["frozen", "--clip", "tiny", "--output", run_folder(folder, preset)]
    words = ["eval", *model, *built_in(folder), "--json", "--device", "cpu", "--episodes", str(episodes)]
    words += ["--shots", *map(str, SHOTS), "--workers", "0"]
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command(*words), stdout=out, env=one_thread())
        _, status, usage = os.wait4(process.pid, 0)  # the peak of this one child
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"scoring {preset} failed, see above")
        out.seek(0)
        return json.load(out)["results"], seconds, usage.ru_maxrss * 1024


def built_in(folder: Path) -> tuple[str | Path, ...]:
    return "--built-in", "motion", "--videos", folder / "motion" / "videos"


def run_folder(folder: Path, preset: str) -> Path:
    return folder / "motion" / "episodes" / preset


def main() -> None:
    args = runner.parser(__doc__, "comparison").parse_args()
    render_built_in("motion", args.folder / "motion" / "videos", CLIPS, seed=0)
    trained = [preset for preset in MODELS.values() if preset != "frozen"]
    runner.at_once(lambda preset: train(args.folder, preset), trained, args.jobs)
    found, cost = {}, {}
    for label, preset in MODELS.items():
        print(f"{preset}: scoring", flush=True)
        found[label] = score(args.folder, preset, EPISODES)[0]
        # The features are on the disk by now: what is left is starting, reading them, drawing episodes and scoring.
        many, seconds, memory = score(args.folder, preset, MANY)
        cost[label] = {"seconds": seconds, "peak_bytes": memory, "results": many}
    setting = {"training": TRAINING, "clips_a_class": CLIPS, "threads": 1}
    runner.publish("episodes", {"setting": setting, "episodes": found, "ten_thousand": cost}, page)


def cells(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy with its interval by shots, for each head that is there."""
    ordered = sorted(results, key=lambda result: result["shots"])
    found = [result["heads"].get(head) for result in ordered for head in HEADS]
    return ["" if accuracy is None else runner.percent(accuracy["mean"], accuracy["interval"]) for accuracy in found]


def page(found: Mapping[str, Any]) -> list[str]:
    """The page, as lines."""
    first = next(iter(found["episodes"].values()))[0]
    return [
        "# Few-shot recognition by episodes",
        "",
        f"Accuracy in per cent with its 95 % interval over the same {first['episodes']:,} episodes of {first['way']} "
        f"of the {first['classes']} novel classes of the moving shapes, {first['queries']} query a class. Tiny CLIP, "
        "8 frames, one view. Trained by episodes of one shot on 30 of the 40 base classes, seed 0; the weights are "
        'those that do best on the other 10. "Matching" reads the support videos alone, "text" the class names '
        'alone, "fused" is the model\'s own answer from both.',
        "",
        *runner.table(
            ("", *(f"{k}-shot, {head}" for k in SHOTS for head in HEADS)),
            [(label, *cells(results)) for label, results in found["episodes"].items()],
        ),
        "",
        f"What {MANY:,} episodes with 1 shot and as many with 5 cost when the features of the videos are on the disk: "
        f"the whole command, on {found['device']}.",
        "",
        *runner.table(
            ("", "seconds", "peak memory of the process"),
            [
                (label, f"{cost['seconds']:.1f}", f"{cost['peak_bytes'] / 2**30:.2f} GiB")
                for label, cost in found["ten_thousand"].items()
            ],
        ),
    ]


if __name__ == "__main__":
    main()
