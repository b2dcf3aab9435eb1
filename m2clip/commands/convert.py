"""`m2clip convert`: from and to the checkpoints of the authors' code."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from m2clip.commands.shared.output import print_result
from m2clip.commands.shared.parsing import DEFAULT_CLIP, add_command, add_json, as_field
from m2clip.errors import InputError
from m2clip.files.folders import check_apart

EXAMPLE = """  m2clip convert k400_b16_8f.pth runs/authors --clip ViT-B-16-quickgelu --frames 8 --classes k400
  m2clip convert ssv2_24x384.pth runs/st_adapter --classes ssv2
  m2clip convert m2clip_ssv2.pth runs/ssv2 --classes ssv2 --words ssv2-official --frames 32
  m2clip convert runs/k400 k400.pth --to authors

checkpoints of M2-CLIP, ST-Adapter and AIM are told apart by the names in them."""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "convert", run, "Convert from, or to, a checkpoint of the authors' code", EXAMPLE)
    parser.add_argument("source", metavar="SRC", help="the authors' checkpoint; with --to authors a run folder")
    parser.add_argument("target", metavar="DST", help="run folder to write; with --to authors a checkpoint file")
    parser.add_argument("--to", choices=("m2clip", "authors"), default="m2clip", help="what to write (default: m2clip)")
    parser.add_argument(
        "--clip", default=DEFAULT_CLIP, help=f"architecture of the checkpoint (default: {DEFAULT_CLIP})"
    )
    parser.add_argument(
        "--pretrained", default="openai", help="open_clip tag of the checkpoint's CLIP (default: openai)"
    )
    parser.add_argument(
        "--frames",
        type=as_field("data.num_frames"),
        help="frames of a clip of the checkpoint (default: what it tells, or else 8)",
    )
    parser.add_argument(
        "--preset", help="of what tensors do not tell (default: for AIM k400, or ssv2 with two temporal adapters)"
    )
    parser.add_argument("--classes", default="k400", help="label set or class file of the checkpoint (default: k400)")
    parser.add_argument(
        "--words",
        metavar="FILE",
        help="of M2-CLIP's masked-word head, one word per line or `word id`, or ssv2-official "
        "(default: the words of the class names)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Convert and say where the result is."""
    from m2clip.checkpoints import convert
    from m2clip.checkpoints.adapters import CONFIG_FILE, WEIGHTS_FILE
    from m2clip.data.lists.label_sets import load_class_names

    check_apart(args.target, args.source, option="name")
    if not Path(args.source).exists():
        raise InputError(f"{args.source}: no such file or folder")
    target = Path(args.target)
    files = [target] if args.to == "authors" else [target / CONFIG_FILE, target / WEIGHTS_FILE]
    if there := next((path for path in files if os.path.lexists(path)), None):
        raise InputError(f"{there} is there already: nothing is written over it; move it away, or give another name")
    if args.to == "authors":
        convert.convert_to_authors(args.source, args.target)
    else:
        convert.convert_from_authors(
            args.source,
            args.target,
            clip_name=args.clip,
            pretrained=args.pretrained,
            num_frames=args.frames,
            class_names=load_class_names(args.classes),
            preset=args.preset,
            words=args.words,
        )
    print_result(args, {"written": args.target}, f"written: {args.target}")
