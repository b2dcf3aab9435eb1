"""Ablation of M2-CLIP on the built-in data set: what each part adds, over several seeds, as one table.

    python benchmarks/ablation.py --folder ablation --jobs 2

Trains every row with every seed on the same rendered videos (runs are kept in the folder, and a stopped call goes on
where it was), then writes benchmarks/results/cpu/ablation.json and docs/ablation.md. Seeds change initial weights and
the order of training, not the videos.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BASE: dict[str, Any] = {"output_adapter": False, "text_layers": 0, "heads": ["contrastive"]}
ROWS: dict[str, dict[str, Any]] = {
    "+ TED-Adapter, TE only": {**BASE, "difference": False},
    "+ TED-Adapter, TD only": {**BASE, "temporal": False},
    "+ TED-Adapter, TE and TD": BASE,
    "+ text adapter": {**BASE, "text_layers": 1},
    "+ CMC head": {**BASE, "text_layers": 1, "heads": ["contrastive", "cmc"]},
    "+ CMLM head": {**BASE, "text_layers": 1, "heads": ["contrastive", "cmc", "cmlm"]},
    "+ VC head": {**BASE, "text_layers": 1, "heads": ["contrastive", "cmc", "cmlm", "vc"]},
    "+ output temporal adapter (preset official)": {},
}
FROZEN = "frozen CLIP"
MEASURES = {
    "base_similarity": "trained classes, by text",
    "base_classifier": "trained classes, by VC head",
    "novel_similarity": "new classes, zero-shot",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("ablation"), help="videos and runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--clips", type=int, default=60, help="training clips a class")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help="train and score a single run")
    return parser.parse_args()


def train_one(args: argparse.Namespace, row: str, seed: int) -> None:
    """Train one row with one seed and leave its scores in scores.json."""
    import torch

    from m2clip.checkpoint import load_adapters
    from m2clip.clip_loading import load_clip
    from m2clip.config import load_config
    from m2clip.demo import CONFIG, evaluate_part
    from m2clip.methods import create_model
    from m2clip.results import write_json
    from m2clip.train import run

    torch.set_num_threads(1)
    videos, folder = args.folder / "videos", run_folder(args.folder, row, seed)
    config = load_config(CONFIG, [f"--data.train={videos / 'base_train.txt'}"])
    config.data.classes = str(videos / "base_classes.csv")
    config.data.workers, config.seed, config.output = 0, seed, str(folder)
    config.optim.epochs = args.epochs
    config.model.options = {**config.model.options, "placement": "pre_mlp", **ROWS.get(row, {})}
    if row == FROZEN:
        folder.mkdir(parents=True, exist_ok=True)
        model = create_model("clip", load_clip("tiny"), ["any"], config.data.num_frames)
    else:
        run(config, quiet=True)
        model = load_adapters(folder)
    base, novel = (evaluate_part(model, videos, part, config) for part in ("base", "novel"))
    scores = {
        "base_similarity": base.zero_shot.top1,
        "base_classifier": base.supervised.top1 if base.supervised else None,
        "novel_similarity": novel.zero_shot.top1,
        "trained_parameters": sum(tensor.numel() for tensor in model.trained_state_dict().values()),
    }
    write_json(scores, folder / "scores.json")


def run_folder(folder: Path, row: str, seed: int) -> Path:
    return folder / "runs" / f"{''.join(c if c.isalnum() else '_' for c in row)}-{seed}"


def main() -> None:
    args = arguments()
    if args.one:
        train_one(args, args.one[0], int(args.one[1]))
        return
    from m2clip.data.motion import render_dataset

    render_dataset(args.folder / "videos", {"train": args.clips, "val": 10}, seed=0)
    wanted = [(FROZEN, 0), *((row, seed) for seed in range(args.seeds) for row in ROWS)]
    start = time.monotonic()

    def work(task: tuple[str, int]) -> None:
        if not (run_folder(args.folder, *task) / "scores.json").exists():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", task[0], str(task[1])], check=True)
        print(f"{time.monotonic() - start:6.0f} s  {task[0]}, seed {task[1]}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, wanted))
    report(args)


def report(args: argparse.Namespace) -> None:
    """Write the JSON and the table."""
    import torch

    from benchmarks.measure import write_results

    rows: dict[str, Any] = {}
    for row in (FROZEN, *ROWS):
        seeds = range(1 if row == FROZEN else args.seeds)
        runs = [json.loads((run_folder(args.folder, row, seed) / "scores.json").read_text()) for seed in seeds]
        rows[row] = {
            "trained_parameters": runs[0]["trained_parameters"],
            **{name: [run[name] for run in runs] for name in MEASURES},
        }
    setting = {"epochs": args.epochs, "clips_a_class": args.clips, "seeds": args.seeds}
    write_results("ablation", torch.device("cpu"), {"setting": setting, "rows": rows})
    lines = [
        "# Ablation on the built-in data set",
        "",
        f"Top-1 accuracy on held-out videos in per cent, mean ± standard deviation over {args.seeds} seeds. Tiny CLIP, "
        f"8 frames, {args.clips} training clips for each of 40 classes, {args.epochs} epochs of the demo's recipe, "
        "adapters before the FFN only; 40 trained and 20 new classes, 10 held-out videos each. "
        "Every row keeps what the rows above it added, except "
        "that the three TED rows stand side by side. By chance: 2.5, 2.5 and 5.",
        "",
        "| | trained parameters | " + " | ".join(MEASURES.values()) + " |",
        "|---|---:|" + "---:|" * len(MEASURES),
    ]
    for row, values in rows.items():
        cells = [f"{values['trained_parameters']:,}", *(cell(values[name]) for name in MEASURES)]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Made by `python benchmarks/ablation.py`; every run's numbers: `benchmarks/results/cpu/ablation.json`.",
        "",
    ]
    path = ROOT / "docs" / "ablation.md"
    path.write_text("\n".join(lines))
    print("\n".join(lines[4:-2]))
    print(path)


def cell(values: list[float | None]) -> str:
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return "–"
    return f"{statistics.mean(numbers):.1f}" + (f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")


if __name__ == "__main__":
    main()
