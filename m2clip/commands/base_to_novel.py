"""`m2clip base-to-novel`: train on half of the classes, score both halves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared import contenders
from m2clip.commands.shared.contenders import OVERRIDES, add_contenders
from m2clip.commands.shared.output import console, print_json, print_line, table
from m2clip.commands.shared.parsing import add_command, positive
from m2clip.errors import InputError
from m2clip.files.kept_work import check_replaceable

EXAMPLE = f"""  m2clip base-to-novel --config M2-CLIP=my_ucf.yaml --data.train trainlist01.txt --data.val testlist01.txt
  m2clip base-to-novel --config my_ucf.yaml --base-classes ucf101-base --novel-classes ucf101-novel
  m2clip base-to-novel --config my_hmdb.yaml --data.train 'lists/fs_base_s{{seed}}_train.txt' \\
    --data.val lists/base_val.txt --data.classes hmdb51-base --data.root hmdb51 \\
    --novel-list lists/novel_val.txt --novel-classes hmdb51-novel
  m2clip base-to-novel --config m2clip_demo --built-in mocap

without class lists the more frequent half of the training videos' classes is base. With
--novel-list the configuration's lists hold base classes only, in their own numbering.
{OVERRIDES}"""

PICTURE = "base_to_novel.png"


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(
        commands, "base-to-novel", run, "Train on base classes, score them and classes never seen", EXAMPLE
    )
    parser.add_argument("--shots", type=positive, default=16, help="training videos of a base class (default: 16)")
    group = parser.add_argument_group("classes")
    group.add_argument("--base-classes", help="label set or class file (default: the more frequent half)")
    group.add_argument("--novel-classes", help="label set or class file (default: the other half)")
    group.add_argument("--novel-list", help="held-out videos of the novel classes, where these have their own list")
    add_contenders(parser, "runs/base_to_novel", (1, 2, 3))


def run(args: argparse.Namespace) -> None:
    """Run the protocol, print the table, write results.json and base_to_novel.png."""
    from m2clip import distributed
    from m2clip.data.lists.label_sets import load_class_names
    from m2clip.plots import pictures as plots
    from m2clip.protocols import comparisons as protocols

    output = Path(args.output)
    check_replaceable(output / "results.json", output / PICTURE)
    if args.built_in and (args.base_classes or args.novel_classes or args.novel_list):
        raise InputError("--built-in brings its own base and novel classes: drop the other options for classes")
    try:
        taking_part = contenders.read_contenders(args)
        novel_list, novel_classes = args.novel_list, args.novel_classes
        if args.built_in:
            videos = contenders.videos_folder(args)
            novel_list, novel_classes = str(videos / "novel_val.txt"), videos / "novel_classes.csv"
        results = protocols.base_to_novel(
            taking_part,
            output,
            shots=args.shots,
            seeds=args.seeds,
            base_classes=load_class_names(args.base_classes) if args.base_classes else None,
            novel_classes=load_class_names(novel_classes) if novel_classes else None,
            novel_list=novel_list,
            device=args.device,
            reporter=contenders.reporter(args),
        )
    finally:
        distributed.shutdown()
    if not contenders.main_process():
        return
    methods, number = results["methods"], {part: len(names) for part, names in results["classes"].items()}
    titles = {part: f"{number[part]} {part}" for part in ("base", "novel")}
    picture = plots.comparison_bars(
        {
            name: {
                **{title: found[part]["top1"]["mean"] for part, title in titles.items()},
                "harmonic mean": found["harmonic_mean"],
            }
            for name, found in methods.items()
        },
        output / PICTURE,
        f"top-1, {args.shots} videos a base class",
        {title: results["chance"][part] for part, title in titles.items()},
    )
    if args.json:
        print_json(results)
        return
    rows = [
        (
            name,
            *(contenders.spread(found[part]["top1"]) for part in titles),
            f"{100 * found['harmonic_mean']:.1f}",
        )
        for name, found in methods.items()
    ]
    header = ("top-1 %", *(f"{title} classes" for title in titles.values()), "harmonic mean")
    console().print(table(header, rows, numbers=3))
    for part, line in results["evaluation"].items():
        print_line(f"{part}: seeds {', '.join(map(str, args.seeds))} | {line}")
    print_line(f"written: {output / 'results.json'}, {picture}")
