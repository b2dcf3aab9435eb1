"""`m2clip describe`: files of sentences that describe the classes of a label set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared.output import print_result
from m2clip.commands.shared.parsing import add_command, add_json, positive

EXAMPLE = """  m2clip describe spatial.json --classes ucf101 --sentences 2
  m2clip describe spatial.json --classes ucf101 --check"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "describe", run, "Write a file of class descriptions to fill in, or check a filled one", EXAMPLE
    )
    parser.add_argument("file", type=Path, help="JSON file of sentences by class")
    parser.add_argument("--classes", required=True, help="bundled label set or class file")
    parser.add_argument("--sentences", type=positive, default=2, help="empty sentences per class (default: 2)")
    parser.add_argument("--check", action="store_true", help="check the file instead of writing one")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Write the template, or say what a filled file holds."""
    from m2clip.data.lists.label_sets import load_class_names
    from m2clip.methods.descriptions import load_descriptions, write_template

    names = load_class_names(args.classes)
    if args.check:
        found = load_descriptions(args.file, names)
        counts = {"classes": len(found), "sentences": sum(map(len, found))}
        text = f"{args.file}: {counts['classes']} classes, {counts['sentences']} sentences"
    else:
        write_template(args.file, names, args.sentences)
        counts = {"classes": len(names), "sentences": args.sentences * len(names)}
        text = f"written: {args.file}, {args.sentences} empty sentences for each of {len(names)} classes"
    print_result(args, {"file": str(args.file), **counts}, text)
