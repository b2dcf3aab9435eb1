"""What the two ways of resizing test frames change: pixels, and the accuracy of one and the same trained model.

    python benchmarks/transforms.py
    python benchmarks/transforms.py --clips 2 --epochs 1    a quick look

"authors" is bicubic without antialias on normalised floats, its long side rounded down; "standard" is bilinear with
antialias on bytes, its long side rounded (`m2clip.data.transforms`). M2-CLIP is trained once on the built-in videos, by
the bundled tiny CLIP as `m2clip demo` does it, and scored with either. Pixels are compared on these videos, from 64 to
48 pixels, and on generated ones, from 340 x 256 to a crop of 224. Writes transforms.json.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.decode_videos import pictures
from benchmarks.measure import calls_for, interleave, parser, summary, write_results
from m2clip.data.transforms import NORMALIZATION, TRANSFORMS, EvalTransform, TransformSettings


def differences(frames: torch.Tensor, size: int) -> dict[str, float]:
    """Of the two results for (T, 3, H, W) uint8 frames, in levels of 255."""
    authors, standard = (
        EvalTransform(TransformSettings(size=size, transform=kind))(frames) for kind in ("authors", "standard")
    )
    std = torch.tensor(NORMALIZATION["clip"][1]).view(3, 1, 1)
    levels = ((authors - standard) * std * 255).abs()
    return {"mean": round(levels.mean().item(), 3), "largest": round(levels.max().item(), 1)}


def milliseconds(frames: torch.Tensor, size: int) -> dict[str, Any]:
    """Time of one clip."""
    device = torch.device("cpu")
    runs = {kind: EvalTransform(TransformSettings(size=size, transform=kind)) for kind in TRANSFORMS}
    variants = {kind: (lambda transform=transform: transform(frames)) for kind, transform in runs.items()}
    calls = {kind: calls_for(run, device, 0.2) for kind, run in variants.items()}
    found = interleave(variants, 7, device, calls=calls)
    return {kind: summary([1e3 * seconds for seconds in times]) for kind, times in found.items()}


def accuracy(folder: Path, clips: int, epochs: int | None) -> dict[str, Any]:
    """Top-1 of the demo's model by either way, and on how many videos its answers differ."""
    from m2clip import load_adapters
    from m2clip.config import load_config
    from m2clip.data.built_in.motion import render_dataset
    from m2clip.data.clips import load_views
    from m2clip.data.lists.annotations import load_annotations
    from m2clip.methods.views import default_settings
    from m2clip.protocols.demo import CLIPS_PER_CLASS, CONFIG, evaluate_part
    from m2clip.train.trainer import run

    videos = folder / "videos"
    render_dataset(videos, {"train": clips, "val": CLIPS_PER_CLASS["val"]}, seed=0)
    given = {"train": "base_train.txt", "classes": "base_classes.csv"}
    config = load_config(CONFIG, [f"--data.{key}={videos / name}" for key, name in given.items()])
    config.output, config.data.workers = str(folder / "run"), 0
    config.optim.epochs = epochs or config.optim.epochs
    config.optim.warmup_epochs = min(config.optim.warmup_epochs, config.optim.epochs / 2)
    run(config, quiet=True)
    model = load_adapters(folder / "run")
    results: dict[str, Any] = {}
    for part in ("base", "novel"):
        answers = {}
        for kind in TRANSFORMS:
            config.data.transform = kind
            answers[kind] = evaluate_part(model, videos, part, config)
        results[part] = {
            "videos": answers["authors"].denominator,
            "top1": {kind: result.top1 for kind, result in answers.items()},
        }
    items = load_annotations(videos / "base_val.txt", root=videos).items[::20]
    settings = replace(default_settings(model), normalize="clip")
    pairs = [
        [load_views(item, replace(settings, transform=kind)) for kind in ("authors", "standard")] for item in items
    ]
    std = torch.tensor(NORMALIZATION["clip"][1]).view(3, 1, 1)
    levels = [((a - b) * std * 255).abs() for a, b in pairs]
    results["levels"] = {
        "mean": round(float(np.mean([part.mean().item() for part in levels])), 3),
        "largest": round(max(part.max().item() for part in levels), 1),
    }
    return results


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, writes="the JSON")
    options.add_argument("--folder", type=Path, help="of the videos and the run (default: a temporary one)")
    options.add_argument("--clips", type=int, default=100, help="training videos per class (default: 100, the demo's)")
    options.add_argument("--epochs", type=int, help="of training (default: the demo's)")
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    frames = torch.from_numpy(np.stack(list(pictures(0, 8)))).permute(0, 3, 1, 2).contiguous()
    with tempfile.TemporaryDirectory() as temporary:
        built_in = accuracy(args.folder or Path(temporary), args.clips, args.epochs)
    write_results(
        "transforms",
        torch.device("cpu"),
        {
            "levels_340x256_to_224": differences(frames, 224),
            "milliseconds_per_clip_of_8": milliseconds(frames, 224),
            "built_in_64_to_48": built_in,
            "clips_per_class": args.clips,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
