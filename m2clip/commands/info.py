"""`m2clip info`: what is installed, and how large a model is."""

from __future__ import annotations

import argparse
from typing import Any

from m2clip.commands.shared.output import console, print_json, print_line, table
from m2clip.commands.shared.parsing import add_command, add_image_size, add_json, as_field

EXAMPLE = """  m2clip info
  m2clip info --clip ViT-B-16 --frames 8 16 32 --classes k400
  m2clip info --clips"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "info", run, "Show versions, the build and kernel backends; with --clip, the size of a model", EXAMPLE
    )
    parser.add_argument("--clip", help="a CLIP by name; no weights are loaded")
    parser.add_argument(
        "--clips", action="store_true", help="list every architecture of open_clip with the methods that it can have"
    )
    parser.add_argument(
        "--frames", type=as_field("data.num_frames"), nargs="+", default=[8], help="clip lengths to count (default: 8)"
    )
    parser.add_argument(
        "--classes",
        default="400",
        help="bundled label set, class file or number: then the bundled set of that size (default: 400)",
    )
    add_image_size(parser, "the images")
    parser.add_argument("--method", default="m2clip", help="method (default: m2clip); clip is frozen CLIP")
    parser.add_argument("--preset", help="of the method; for m2clip official or paper (default: official)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the tables, or one JSON value."""
    from m2clip import info
    from m2clip.data.lists.label_sets import load_class_names

    if args.clips:
        clips = info.list_clips()
        if args.json:
            print_json(clips)
            return
        _print_clips(clips)
        return
    found: dict[str, Any] = info.environment()
    if args.clip:
        names = info.label_set_of_size(int(args.classes)) if args.classes.isdigit() else load_class_names(args.classes)
        found["model"] = info.model_size(
            args.clip, args.frames, names, args.method, args.preset, image_size=args.image_size
        )
    if args.json:
        print_json(found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    rows = [(name, version or "not installed") for name, version in found["versions"].items()]
    rows += [("devices", ", ".join(found["devices"])), *_build_rows(found["build"])]
    rows += _cuda_rows(found["cuda_build"])
    console().print(table(("what", "version"), rows))
    states = [
        (name, "on" if state["available"] else "off", state["reason"]) for name, state in found["backends"].items()
    ]
    console().print(table(("kernel backends", "state", "what it is, or why it is off"), states))
    if found["verified"]["kernels"]:
        console().print(table(("verified kernels", "backend", "error", "when"), _verified_rows(found["verified"])))
        print_line(f"errors are multiples of PyTorch's; kept in {found['verified']['folder']}")
    if "model" not in found:
        return
    model = found["model"]
    print_line(
        f"{model['method']} ({model['preset']}) on {model['clip']}, images of {model['image_size']}, "
        f"{model['classes']} classes"
    )
    parts = [(name, f"{part['trained']:,}", f"{part['frozen']:,}") for name, part in model["parameters"].items()]
    console().print(table(("part", "trained parameters", "frozen parameters"), parts, numbers=2, total=True))
    counts = [
        (str(row["frames"]), _billions(row["visual_per_view"]), _billions(row["text_per_label_set"]))
        for row in model["multiply_adds"]
    ]
    console().print("multiply-adds of a forward pass, in 10⁹")
    console().print(table(("frames", "visual side, one view", "text side, label set"), counts, numbers=2))


def _print_clips(clips: list[dict[str, Any]]) -> None:
    """A line for each architecture; what several have in common is said once, below."""
    notes: dict[str, int] = {}

    def noted(reason: str) -> str:
        return f"[{notes.setdefault(reason, len(notes) + 1)}]"

    rows = []
    for row in clips:
        missing = [f"{method} {noted(reason)}" for method, reason in row["methods"].items() if reason is not None]
        able = f"all but {', '.join(missing)}" if missing else "all"
        rows.append((row["clip"], f"none {noted(row['refused'])}" if row["refused"] else able))
    console().print(table(("architecture", "methods, with their default options"), rows))
    for reason, number in notes.items():
        print_line(f"[{number}] {reason}")


def _verified_rows(verified: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each kernel: with what was wrong, and whether it was measured (`m2clip tune`)."""
    rows: list[tuple[str, ...]] = []
    for kernel in verified["kernels"]:
        measured = kernel["measured"] and f"measured: {kernel['measured']} is fastest"
        notes = [f"{kernel['error']:.1f}x" if kernel["passed"] else f"off: {kernel['message']}", measured]
        rows.append((kernel["call"], kernel["backend"], "\n".join(filter(None, notes)), kernel["when"]))
    return rows


def _build_rows(build: dict[str, Any]) -> list[tuple[str, str]]:
    if not build["native"]:
        return [("compiled extension", f"none: {build['reason']}")]
    others = [name for name in build["instruction_sets"] if name != build["instruction_set"]]
    threads = {"torch": "those of torch's OpenMP", "own": "its own, started for each call"}
    return [
        ("compiled extension", f"{build['compiler']}\n{build['flags']}"),
        ("instruction set", f"{build['instruction_set']} (also there: {', '.join(others) or 'none'})"),
        ("its threads", threads[build["threads"]]),
    ]


def _cuda_rows(build: dict[str, Any]) -> list[tuple[str, str]]:
    if not build["cuda"]:
        return [("CUDA extension", f"none: {build['reason']}")]
    return [
        ("CUDA extension", f"{build['compiler']}\n{build['flags']}"),
        ("its machine code", ", ".join(f"sm_{name}" for name in build["architectures"])),
    ]


def _billions(count: int) -> str:
    """In 10⁹: one decimal, or three significant digits of small numbers."""
    return f"{count / 1e9:,.1f}" if count >= 1e10 else f"{count / 1e9:.3g}"
