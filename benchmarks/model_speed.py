"""What train_speed.py and inference_speed.py share: options, and the choice of variants."""

from __future__ import annotations

import argparse

import torch

from benchmarks import measure
from benchmarks.train_variants import CPU_VARIANTS, TOLERANCE, VARIANTS, runnable


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of both, whose dtype `set_dtype` completes."""
    made = measure.parser(description, "--device", "--rounds", "--threads", "--budget", rounds=rounds)
    made.add_argument("--clip", default="ViT-B-16-quickgelu")
    made.add_argument("--frames", type=int, default=8)
    made.add_argument("--classes", default="k400")
    made.add_argument("--dtype", choices=tuple(TOLERANCE), help="default: float32, on a GPU bfloat16")
    made.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    made.add_argument("--no-compile", action="store_true", help="leave the torch.compile variants out")
    made.set_defaults(threads=2)
    return made


def set_dtype(args: argparse.Namespace) -> str:
    """Give the options their default dtype; returns the kind of their device."""
    kind = torch.device(args.device).type
    args.dtype = args.dtype or ("bfloat16" if kind == "cuda" else "float32")
    return kind


def chosen(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Variants to run, those without torch.compile first, and why others are not."""
    device = torch.device(args.device)
    found, not_run = runnable(device)
    wanted = args.variants or (list(VARIANTS) if device.type == "cuda" else CPU_VARIANTS)
    names = sorted((name for name in found if name in wanted), key=lambda name: VARIANTS[name].compiled)
    not_run = {name: reason for name, reason in not_run.items() if name in wanted}
    if args.no_compile:
        not_run |= {name: "left out by --no-compile" for name in names if VARIANTS[name].compiled}
    return [name for name in names if name not in not_run], not_run
