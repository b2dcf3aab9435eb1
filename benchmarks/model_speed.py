"""What train_speed.py and inference_speed.py share: options, the choice of variants, and their colours."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.adapter_plot import COMPILED_SHADE, REFERENCE_SHADE
from benchmarks.measure import Budget
from benchmarks.train_variants import AUTHORS, CPU_VARIANTS, OURS, REFERENCE, TOLERANCE, VARIANTS, runnable
from m2clip.plot_parts import QUIET, STRONG


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of both, whose dtype `set_dtype` completes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--clip", default="ViT-B-16-quickgelu")
    made.add_argument("--frames", type=int, default=8)
    made.add_argument("--classes", default="k400")
    made.add_argument("--dtype", choices=tuple(TOLERANCE), help="default: float32, on a GPU bfloat16")
    made.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    made.add_argument("--no-compile", action="store_true", help="leave the torch.compile variants out")
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=2, help="CPU threads")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    Budget.add_argument(made)
    out = "folder of JSON and PNG (default: benchmarks/results/<device>)"
    made.add_argument("--out", "--output", type=Path, help=out)
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


def told(error: Exception) -> str:
    """A failure in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def shade(name: str) -> str:
    """Colour of a variant's bars."""
    shades = {REFERENCE: REFERENCE_SHADE, OURS: STRONG, AUTHORS: QUIET}
    return shades.get(name, COMPILED_SHADE if VARIANTS[name].compiled else STRONG)
