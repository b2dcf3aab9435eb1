"""One training step of M2-CLIP, ours against the authors' formulation: seconds, interleaved, and peak memory.

    python benchmarks/train_speed.py --clip ViT-B-16-quickgelu --frames 8 --batch 2 --rounds 5

Both variants have the same weights, clips, labels and masked words, and the run stops if their losses differ. A step is
forward, backward and AdamW. Weights are random: time does not depend on them. Memory is the largest resident set (GPU:
allocation) of a process that only ever ran that variant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import m2clip
from benchmarks.authors import AuthorsM2CLIP, total_loss
from benchmarks.measure import (
    device_name,
    interleave,
    peak_resident_gb,
    ratio,
    resident_gb,
    summary,
    synchronise,
    write_results,
)
from m2clip.convert import to_authors_state
from m2clip.data.label_sets import load_class_names
from m2clip.text import IGNORE

VARIANTS = ("m2clip", "authors")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", default="k400")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="folder for the JSON (default: benchmarks/results/<device>)")
    parser.add_argument("--memory-of", choices=VARIANTS, help="run only this variant and print its memory as JSON")
    return parser.parse_args()


def build(args: argparse.Namespace, wanted: tuple[str, ...]) -> dict[str, Callable[[], float]]:
    """The wanted variants' training steps; each returns its loss."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    names = load_class_names(args.classes)
    clip = m2clip.load_clip(args.clip, None)
    model = m2clip.create_model("m2clip", clip, names, args.frames, vc_dropout=0.0).to(device)
    clip.to(device)  # what the towers do not share, such as the causal mask
    video = torch.randn(args.batch, args.frames, 3, *model.image_size, device=device)
    labels = torch.arange(args.batch, device=device) % len(names)
    steps = {}
    if "authors" in wanted:
        theirs = AuthorsM2CLIP(clip, args.frames, len(names), len(model.config.word_list)).to(device)
        theirs.load_state_dict(to_authors_state(model))
        length = clip.context_length
        classes = F.pad(model._prompts.tokens, (0, length - model._prompts.tokens.shape[1])).to(device)
        uniform = torch.rand(args.batch, model.masker.max_words, generator=torch.Generator().manual_seed(0))
        masked, targets = model.masker(labels.tolist(), uniform)
        words = torch.full((args.batch, length), IGNORE).scatter(1, masked.positions, targets).to(device)
        masked_tokens = F.pad(masked.tokens, (0, length - masked.tokens.shape[1])).to(device)
        their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)
        scale = clip.logit_scale.exp().item()

        def authors_step() -> float:
            parts = theirs.losses(video, labels, classes, classes[labels], masked_tokens, words, scale)
            return step(total_loss(parts), their_optimizer)

        steps["authors"] = authors_step
    if "m2clip" in wanted:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

        def our_step() -> float:
            return step(model.loss(video, labels, torch.Generator().manual_seed(0)).total, optimizer)

        steps["m2clip"] = our_step
    return {name: steps[name] for name in wanted}


def step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Memory of a process that builds one variant and takes two steps."""
    device = torch.device(args.device)
    run = build(args, (args.memory_of,))[args.memory_of]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    else:
        before = resident_gb()
    for _ in range(2):
        run()
    synchronise(device)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_resident_gb()
    return {"peak_gb": peak, "before_steps_gb": before, "steps_gb": peak - before}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory(args)))
        return
    device = torch.device(args.device)
    used = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        used[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    steps = build(args, VARIANTS)
    losses = {name: run() for name, run in steps.items()}  # the warm-up: text cache, memory pools
    if abs(losses["m2clip"] - losses["authors"]) > 1e-4 * abs(losses["authors"]):
        sys.exit(f"the variants do not compute the same: losses {losses}")
    seconds = interleave(steps, args.rounds, device)
    speedup = ratio(seconds["authors"], seconds["m2clip"])
    content = {
        "setting": {
            "clip": args.clip,
            "frames": args.frames,
            "batch": args.batch,
            "classes": args.classes,
            "dtype": "float32",
            "preset": "official",
        },
        "losses_before": losses,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "speedup": speedup,
        "memory": used,
        "memory_ratio": {key: used["m2clip"][key] / used["authors"][key] for key in ("peak_gb", "steps_gb")},
    }
    path = write_results("train_speed", device, content, args.output)
    print(f"one training step on {device_name(device)}, {args.clip}, {args.batch} clips of {args.frames} frames")
    print(f"{'':10}{'median s':>10}{'p20-p80':>16}{'peak GB':>10}{'of the step':>13}")
    for name in VARIANTS:
        time, mem = content["seconds"][name], used[name]
        spread = f"{time['p20']:.2f}-{time['p80']:.2f}"
        print(f"{name:10}{time['median']:>10.2f}{spread:>16}{mem['peak_gb']:>10.2f}{mem['steps_gb']:>13.2f}")
    print(f"{speedup['median']:.2f}x faster (rounds: {speedup['p20']:.2f}-{speedup['p80']:.2f}); {path}")


if __name__ == "__main__":
    main()
