"""Memory of a training step with blocks that are computed again in the backward pass (optim.checkpointing).

    python benchmarks/step_memory.py
    python benchmarks/step_memory.py --clip tiny --method aim    a quick look

The loss of one clip and its gradients, in a CLIP of random weights in fp32, each row in a process of its own: without
recomputation, and for half and for all of the blocks of each tower. "kept" are the tensors that the forward pass keeps
for the backward pass, parameters aside, counted one by one. "peak" is the largest resident memory during both passes
less what was resident before, gradients included. "seconds" is the one step, and says no more than whether
recomputation costs a share of a step or many of them. Losses and gradients must have equal bits, or the run stops.
Writes step_memory.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import m2clip
from benchmarks.measure import parser, write_results
from benchmarks.memory import RESET, KeptTensors, in_own_process, status_bytes
from m2clip.checkpoints.adapters import weights_hash
from m2clip.data.episodes import EpisodeShape
from m2clip.data.lists.label_sets import load_class_names

CLIPS = ("ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
SHARES = {"none": 0.0, "half": 0.5, "all": 1.0}


def build(name: str, method: str, frames: int) -> Any:
    """A model in training of random weights."""
    torch.manual_seed(0)
    clip = m2clip.load_clip(name, None)
    options: dict[str, Any] = {"msta": {"alpha": 0.0}}.get(method, {})
    classes = load_class_names("k400")
    model: Any = m2clip.create_model(method, clip, class_names=classes, num_frames=frames, **options)
    if method == "ma_fsar":
        model.episode = EpisodeShape(way=2, shots=1, queries=1)
    return model.train()


def measure(name: str, method: str, frames: int, share: float) -> dict[str, Any]:
    """Bytes and seconds of one step in this process, and a digest of its numbers."""
    model = build(name, method, frames)
    blocks = round(share * len(model.visual.blocks))
    model.recompute(blocks)
    model.fill_caches()
    labels = torch.tensor([0, 1, 0, 1] if method == "ma_fsar" else [0])
    video = torch.randn(len(labels), frames, 3, *model.image_size)
    torch.manual_seed(1)
    before = status_bytes("VmRSS")
    RESET.write_text("5")
    start = time.perf_counter()
    with KeptTensors(model) as kept:
        total = model.loss(video, labels, generator=torch.Generator().manual_seed(2)).total
    total.backward()
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM") - before
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    digest = weights_hash({"loss": total.detach(), **gradients})
    return {"blocks": blocks, "kept": kept.bytes, "peak": peak, "seconds": round(seconds, 1), "digest": digest}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, writes="the JSON")
    options.add_argument("--clip", nargs="+", default=CLIPS, help="which CLIP (default: ViT-B/16 and ViT-L/14)")
    options.add_argument("--method", nargs="+", default=("m2clip",), help="which methods (default: m2clip)")
    options.add_argument("--frames", nargs="+", type=int, default=(8,), help="of the clip (default: 8)")
    options.add_argument("--share", type=float, help="measure this share of the blocks here, and print JSON")
    args = options.parse_args(arguments)
    if args.share is not None:
        print(json.dumps(measure(args.clip[0], args.method[0], args.frames[0], args.share)))
        return
    rows = []
    for name, method, frames in ((n, m, f) for n in args.clip for m in args.method for f in args.frames):
        digests = set()
        for recomputed, share in SHARES.items():
            words = ["--clip", name, "--method", method, "--frames", str(frames), "--share", str(share)]
            found, problem = in_own_process([str(Path(__file__).resolve()), *words])
            if problem:
                raise RuntimeError(problem)
            digests.add(found.pop("digest"))
            rows.append({"clip": name, "method": method, "frames": frames, "recomputed": recomputed, **found})
            print(rows[-1], flush=True)
        if len(digests) > 1:
            raise RuntimeError(f"{name}, {method}: recomputation changed the loss or a gradient")
    write_results("step_memory", torch.device("cpu"), {"threads": torch.get_num_threads(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
