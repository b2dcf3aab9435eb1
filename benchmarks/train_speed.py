"""One training step of M2-CLIP, ours against the authors' formulation: seconds, interleaved, and peak memory.

    python benchmarks/train_speed.py --clip ViT-B-16-quickgelu --frames 8 --batch 2 --rounds 5

All variants have the same weights, clips, labels and masked words, and the run stops if their losses differ. A step is
forward, backward and AdamW. Weights are random: time does not depend on them. "m2clip reference" runs the adapters and
losses in plain PyTorch, "m2clip" on the backends that are chosen by default. Memory is the largest resident set (GPU:
allocation) of a process that only ever ran that variant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import m2clip
from benchmarks.adapter_plot import REFERENCE_SHADE
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
from m2clip import kernels
from m2clip.convert import to_authors_state
from m2clip.data.label_sets import load_class_names
from m2clip.plot_parts import INK, QUIET, STRONG, figure, save
from m2clip.text import IGNORE

AUTHORS, REFERENCE, OURS = "authors", "m2clip reference", "m2clip"  # ours without and with accelerated kernels
VARIANTS = (AUTHORS, REFERENCE, OURS)
LEARNING_RATE = 0.0  # the optimiser does all its work, and every step starts from the same weights


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
    if AUTHORS in wanted:
        theirs = AuthorsM2CLIP(clip, args.frames, len(names), len(model.config.word_list)).to(device)
        theirs.load_state_dict(to_authors_state(model))
        length = clip.context_length
        classes = F.pad(model._prompts.tokens, (0, length - model._prompts.tokens.shape[1])).to(device)
        uniform = torch.rand(args.batch, model.masker.max_words, generator=torch.Generator().manual_seed(0))
        masked, targets = model.masker(labels.tolist(), uniform)
        words = torch.full((args.batch, length), IGNORE).scatter(1, masked.positions, targets).to(device)
        masked_tokens = F.pad(masked.tokens, (0, length - masked.tokens.shape[1])).to(device)
        their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE)
        scale = clip.logit_scale.exp().item()

        def authors_step() -> float:
            parts = theirs.losses(video, labels, classes, classes[labels], masked_tokens, words, scale)
            return step(total_loss(parts), their_optimizer)

        steps[AUTHORS] = authors_step
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def our_step(backend: str) -> float:
        with kernels.use_backend(backend):
            return step(model.loss(video, labels, torch.Generator().manual_seed(0)).total, optimizer)

    steps[REFERENCE], steps[OURS] = partial(our_step, "reference"), partial(our_step, "auto")
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
    if any(abs(loss - losses[AUTHORS]) > 1e-4 * abs(losses[AUTHORS]) for loss in losses.values()):
        sys.exit(f"the variants do not compute the same: losses {losses}")
    seconds = interleave(steps, args.rounds, device)
    speedup = {name: ratio(seconds[AUTHORS], seconds[name]) for name in VARIANTS[1:]}
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
        "memory_ratio": {
            name: {key: used[name][key] / used[AUTHORS][key] for key in ("peak_gb", "steps_gb")}
            for name in VARIANTS[1:]
        },
    }
    path = write_results("train_speed", device, content, args.output)
    print(f"one training step on {device_name(device)}, {args.clip}, {args.batch} clips of {args.frames} frames")
    print(f"{'':18}{'median s':>10}{'p20-p80':>16}{'peak GB':>10}{'of the step':>13}{'faster':>9}")
    for name in VARIANTS:
        time, mem = content["seconds"][name], used[name]
        spread = f"{time['p20']:.2f}-{time['p80']:.2f}"
        faster = f"{speedup[name]['median']:.2f}x" if name in speedup else "1.00x"
        row = f"{time['median']:>10.2f}{spread:>16}{mem['peak_gb']:>10.2f}{mem['steps_gb']:>13.2f}{faster:>9}"
        print(f"{name:18}{row}")
    print(path)
    print(draw(json.loads(path.read_text()), path.with_suffix(".png")))


def draw(results: dict[str, Any], path: Path) -> Path:
    """Draw train_speed.json into a PNG; returns its path."""
    setting = results["setting"]
    with figure(9.5, 2.4) as drawn:
        left, right = drawn.subplots(1, 2)
        for place, name in enumerate(VARIANTS):
            colour = {AUTHORS: QUIET, REFERENCE: REFERENCE_SHADE, OURS: STRONG}[name]
            seconds = results["seconds"][name]["median"]
            faster = results["seconds"][AUTHORS]["median"] / seconds
            memory = results["memory"][name]["steps_gb"]
            left.barh(place, seconds, height=0.68, color=colour)
            left.annotate(f" {seconds:.1f}  {faster:.2f}x", (seconds, place), va="center", fontsize=8)
            right.barh(place, memory, height=0.68, color=colour)
            right.annotate(f" {memory:.2f}", (memory, place), va="center", fontsize=8)
        for axes, unit in ((left, "seconds a step"), (right, "GB a step takes above the loaded model")):
            axes.invert_yaxis()
            axes.set_xlabel(unit, fontsize=8, labelpad=1)
            axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
            axes.tick_params(length=0, labelsize=8)
            axes.spines[["left"]].set_visible(False)
        left.set_yticks(range(len(VARIANTS)), VARIANTS, color=INK, fontsize=8.5)
        right.set_yticks([])
        drawn.suptitle(
            f"One training step, {setting['clip']}, {setting['batch']} clips of {setting['frames']} frames, "
            f"{setting['classes']}, on {results['device']}",
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        return save(drawn, path)


if __name__ == "__main__":
    main()
