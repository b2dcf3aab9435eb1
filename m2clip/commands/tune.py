"""`m2clip tune`: measure the kernels on this GPU, once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from m2clip.commands.parsing import add_command, add_json, positive

if TYPE_CHECKING:
    from m2clip.kernels.tuner import Choice

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
    parser.add_argument("--frames", type=positive, default=8, help="frames of a clip (default: 8)")
    parser.add_argument("--grid", type=_grid, default=(14, 14), help="patches, as 14x14 (default)")
    parser.add_argument("--clips", type=positive, default=32, help="clips of a batch while measuring (default: 32)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the tokens (default: bf16)")
    add_json(parser)


def _grid(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return positive(height), positive(width)


def run(args: argparse.Namespace) -> None:
    """Print what was measured as it comes, or one JSON value."""
    import torch

    from m2clip.commands.output import print_json, print_line
    from m2clip.errors import InputError
    from m2clip.kernels.tuner import Problem, tune

    if not torch.cuda.is_available():
        raise InputError("m2clip tune measures an NVIDIA GPU, and PyTorch sees none; on a CPU there is nothing to tune")
    dtype = getattr(torch, DTYPES[args.dtype])
    problem = Problem(args.dim, args.width, args.frames, args.grid, args.clips, dtype)
    choices: list[Choice] = []

    def report(choice: Choice) -> None:
        choices.append(choice)
        if not args.json:
            print_line(describe(choice))

    path = tune(problem, torch.device("cuda", torch.cuda.current_device()), report)
    if args.json:
        print_json({"file": str(path), "choices": [choice._asdict() for choice in choices]})
    else:
        print_line(f"kept in {path}; delete the file to go back to the static rules")


def describe(choice: Choice) -> str:
    """One line: the winner, the others, and what could not run."""
    timed = sorted(choice.seconds.items(), key=lambda item: item[1])
    times = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in timed)
    failed = "".join(f"; {name} cannot run ({reason})" for name, reason in choice.failed.items())
    return f"{choice.name}: {choice.winner} ({times}{failed})"
