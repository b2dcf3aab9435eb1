"""All methods beside each other: what they train, what they compute, how fast they train, what they learn.

    python studies/methods.py --folder comparison

Counts and training speed with ViT-B/16 and 400 classes, the steps of all methods interleaved; base-to-novel accuracy on
the moving shapes with the tiny CLIP, 16 videos a base class. M2-CLIP's and MSTA's accuracies are those that
studies/comparison.py left in the same folder, the others are trained here. Writes
benchmarks/results/<device>/methods.json and docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import m2clip
from benchmarks.measure import interleave, summary
from m2clip.data.episodes import EpisodeShape
from m2clip.data.lists.label_sets import load_class_names
from m2clip.info import model_size
from studies import comparison, runner

CLIP, CLASSES, FRAMES, BATCH = "ViT-B-16-quickgelu", "k400", 8, 4
# alpha=0: without descriptions of 400 classes MSTA's constraint is left out; it is a mean of 800 cosines.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "M2-CLIP": ("m2clip", {}),
    "MSTA": ("msta", {"alpha": 0.0}),
    "MA-FSAR": ("ma_fsar", {}),
    "ST-Adapter": ("st_adapter", {}),
    "AIM": ("aim", {}),
}
TRAINED_HERE: dict[str, tuple[str, tuple[str, ...]]] = {
    # 640 episodes of 20 clips: as many clips as the other methods see.
    "MA-FSAR": ("ma_fsar_demo", ("episodes.per_epoch=320", "optim.epochs=2", "optim.warmup_epochs=0.3")),
    "ST-Adapter": ("st_adapter_demo", ()),
    "AIM": ("aim_demo", ()),
}
AFTER = " after `python studies/comparison.py`"
EPISODE = EpisodeShape(way=2, shots=1, queries=1)  # of BATCH clips


def arguments() -> argparse.Namespace:
    parser = runner.parser(__doc__, "comparison", jobs=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train-only", action="store_true", help="train what is to be trained, and time nothing")
    return parser.parse_args()


def accuracies(folder: Path) -> dict[str, Any]:
    """Base-to-novel results of every method on the moving shapes."""
    videos = folder / "motion" / "videos"
    contenders = comparison.contenders("motion", videos, TRAINED_HERE)
    output = folder / "motion" / "base_to_novel_others"
    here = comparison.base_to_novel(contenders, videos, output, comparison.SEEDS)
    before = json.loads((folder / "motion" / "base_to_novel" / "results.json").read_text())
    return {**here, "methods": {**before["methods"], **here["methods"]}}


def sizes() -> dict[str, Any]:
    """Trained parameters and multiply-adds of a view, by method."""
    names, found = load_class_names(CLASSES), {}
    for label, (method, options) in MODELS.items():
        size = model_size(CLIP, [FRAMES], names, method, **options)
        trained = size["parameters"]["total"]["trained"]
        head = size["parameters"].get("vc", {}).get("trained", 0)
        found[label] = {"trained": trained, "classifier": head, **size["multiply_adds"][0]}
    return found


def training_steps(device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """A training step of BATCH clips by method, all on one CLIP of random weights."""
    torch.manual_seed(0)
    names, clip = load_class_names(CLASSES), m2clip.load_clip(CLIP, None).to(device)
    steps: dict[str, Callable[[], Tensor]] = {}
    for label, (method, options) in MODELS.items():
        model = m2clip.create_model(method, clip, names, FRAMES, **options).to(device).train()
        labels = torch.arange(BATCH, device=device)
        if isinstance(model, m2clip.methods.MAFSAR):
            model.episode = EPISODE
            labels %= EPISODE.way
        video = torch.randn(BATCH, FRAMES, 3, *model.image_size, device=device)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad], fused=True
        )
        model.fill_caches()

        def step(model: Any = model, video: Tensor = video, labels: Tensor = labels, optimizer: Any = optimizer) -> Any:
            loss = model.loss(video, labels).total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        steps[label] = step
    return steps


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    learnt = accuracies(args.folder)
    if args.train_only:
        return
    torch.set_num_threads(args.threads)
    device, counted = torch.device(args.device), sizes()
    steps = training_steps(device)
    for step in steps.values():
        step()
    seconds = {label: summary(times) for label, times in interleave(steps, args.rounds, device).items()}
    setting = {"clip": CLIP, "classes": CLASSES, "frames": FRAMES, "batch": BATCH, "dtype": "float32"}
    content = {"setting": setting, "sizes": counted, "seconds": seconds, "base_to_novel": learnt}
    runner.publish("methods", content, page, args.device, AFTER)


def page(found: Mapping[str, Any]) -> list[str]:
    """The page, as lines."""
    learnt = found["base_to_novel"]
    number = {part: len(names) for part, names in learnt["classes"].items()}

    def accuracy(label: str) -> list[str]:
        scores = learnt["methods"][label]
        own = [comparison.cell(scores[part]["top1"]) for part in number]
        return own if label in MODELS else [mean.split(" ±")[0] for mean in own]

    rows = [
        ("chance", *[""] * 5, *(runner.percent(learnt["chance"][part]) for part in number)),
        ("frozen CLIP", "0", "0", "", "", "", *accuracy("frozen CLIP")),
    ]
    for label in MODELS:
        size, speed = found["sizes"][label], found["setting"]["batch"] / found["seconds"][label]["median"]
        counts = f"{size['trained']:,}", f"{size['classifier']:,}"
        products = f"{size['visual_per_view'] / 1e9:.1f} G", f"{size['text_per_label_set'] / 1e9:.1f} G"
        rows.append((label, *counts, *products, f"{speed:.2f}", *accuracy(label)))
    header = ("", "trained parameters", "of which classifier", "multiply-adds per view", "and a label set")
    classes = (f"{count} {part} classes" for part, count in number.items())
    return [
        "# All methods in one table",
        "",
        *runner.table((*header, "training clips/s", *classes), rows),
        "",
        f"Counts and speed: {CLIP}, {FRAMES} frames, 400 classes, the default preset of each method; steps of {BATCH} "
        f"clips in fp32 on {found['device']}, the methods taking turns, without reading videos. M2-CLIP and MSTA read "
        "all 400 class texts in every step, which larger batches share; an episode of MA-FSAR has 2 classes, "
        "1 support and 1 query video each. MSTA without its constraint.",
        "",
        "Accuracy: top-1 in per cent on held-out videos of the moving shapes, tiny CLIP, "
        f"{learnt['shots']} training videos a base class, mean ± standard deviation over {len(learnt['seeds'])} seeds, "
        "demonstration recipes. M2-CLIP, ST-Adapter and AIM answer with a classifier on base classes. On novel classes "
        "all answer by text; ST-Adapter and AIM have nothing that is trained to agree with text, and MA-FSAR is made "
        "for [episodes](episodes.md), not for this.",
    ]


if __name__ == "__main__":
    main()
