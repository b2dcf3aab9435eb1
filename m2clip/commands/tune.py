"""`m2clip tune`: measure the kernels on this GPU, once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import print_line, print_result
from m2clip.commands.shared.parsing import add_command, add_json, as_field, positive
from m2clip.errors import InputError

if TYPE_CHECKING:
    from m2clip.kernels.tuning.measure import Comparison

EXAMPLE = """  m2clip tune
  m2clip tune --dim 1024 --width 384 --grid 16x16 --frames 16 --dtype fp16"""
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "tune", run, "Measure on this GPU which kernels and tiles are fastest, and keep the answer", EXAMPLE
    )
    parser.add_argument("--dim", type=positive, default=768, help="token width (default: 768, ViT-B)")
    parser.add_argument("--width", type=positive, default=384, help="bottleneck width (default: 384)")
    parser.add_argument("--frames", type=as_field("data.num_frames"), default=8, help="frames of a clip (default: 8)")
    parser.add_argument("--grid", type=_grid, default=(14, 14), help="patches, as 14x14 (default)")
    parser.add_argument(
        "--clips", type=as_field("eval.clips"), default=32, help="clips of a batch while measuring (default: 32)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the tokens (default: bf16)")
    add_json(parser)


def _grid(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return positive(height), positive(width)


def run(args: argparse.Namespace) -> None:
    """Print what was measured as it comes, or one JSON value."""
    import torch

    from m2clip.kernels.tuning.candidates import Shape
    from m2clip.kernels.tuning.measure import tune

    if not torch.cuda.is_available():
        raise InputError("m2clip tune measures an NVIDIA GPU, and PyTorch sees none; on a CPU there is nothing to tune")
    dtype = getattr(torch, DTYPES[args.dtype])
    shape = Shape(args.dim, args.width, args.frames, args.grid, args.clips, dtype)
    comparisons: list[Comparison] = []

    def report(comparison: Comparison) -> None:
        comparisons.append(comparison)
        if not args.json:
            print_line(describe(comparison))

    path = tune(shape, torch.device("cuda", torch.cuda.current_device()), report)
    value = {"file": str(path), "choices": [comparison._asdict() for comparison in comparisons]}
    print_result(args, value, f"kept in {path}; delete the file to go back to the static rules")


def describe(comparison: Comparison) -> str:
    """One line: the winner, the others, and what could not run."""
    timed = sorted(comparison.seconds.items(), key=lambda item: item[1])
    times = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in timed)
    failed = "".join(f"; {name} cannot run ({reason})" for name, reason in comparison.failed.items())
    return f"{comparison.name}: {comparison.winner} ({times}{failed})"
