"""A small run for the tests of training: folders of tiny images as videos, a tiny CLIP with random weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2clip.config import RunConfig, load_config

CLASS_NAMES = ["a dog running", "a cat sleeping", "a man waving"]
SIZE = 16


def build_clip(seed: int = 0) -> Any:
    """An open_clip CLIP of 16 pixel images with random weights."""
    import open_clip

    torch.manual_seed(seed)
    vision = {"image_size": SIZE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return open_clip.CLIP(embed_dim=32, quick_gelu=False, vision_cfg=vision, text_cfg=text)


def write_videos(folder: Path, count: int = 14, frames: int = 4) -> Path:
    """Folders of images with noise that depends on the class, and their list; returns the list."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        label = number % len(CLASS_NAMES)
        video = folder / f"v{number}"
        video.mkdir(parents=True)
        for frame in range(frames):
            pixels = rng.integers(0, 60, (SIZE, SIZE, 3)) + 60 * label + 10 * frame
            Image.fromarray(pixels.astype(np.uint8)).save(video / f"img_{frame + 1:05d}.jpg")
        lines.append(f"v{number} {frames} {label}")
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    (folder / "classes.csv").write_text("id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate(CLASS_NAMES)))
    return folder / "train.txt"


def build_config(videos: Path, output: Path, *overrides: str) -> RunConfig:
    """3 epochs of 4 steps, each of up to 2 batches of 2 clips, with dropout in the classification head."""
    return load_config(
        None,
        [
            f"data.train={videos}",
            f"data.classes={videos.parent / 'classes.csv'}",
            "data.format=frames",
            "data.num_frames=2",
            "data.workers=0",
            "model.options={width: 8, text_width: 8}",
            "optim.epochs=3",
            "optim.warmup_epochs=0.5",
            "optim.batch_size=2",
            "optim.accumulate=2",
            "optim.lr=0.1",
            "log_every=1",
            "checkpoint_every=2",
            f"output={output}",
            *overrides,
        ],
    )


def read_losses(folder: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv as text, without the speed, which no two runs share."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: text for name, text in row.items() if name != "clips_per_s"} for row in csv.DictReader(file)]
