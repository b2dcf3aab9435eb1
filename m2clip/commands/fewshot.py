"""`m2clip fewshot`: accuracy against the number of training videos per class."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2clip.commands.shared import contenders
from m2clip.commands.shared.contenders import OVERRIDES, add_contenders
from m2clip.commands.shared.output import console, print_json, print_line, table
from m2clip.commands.shared.parsing import add_command, positive
from m2clip.files.kept_work import check_replaceable

EXAMPLE = f"""  m2clip fewshot --config M2-CLIP=my_ucf.yaml --data.train trainlist01.txt --data.val testlist01.txt
  m2clip fewshot --config my_ucf.yaml --data.train 'lists/train1_few_shot_{{shots}}.txt'
  m2clip fewshot --config m2clip_demo --built-in motion --shots 2 4 8 16 --seeds 0 1 2

the K videos of a class are drawn from data.train by each seed; a name with {{shots}} or
{{seed}} in it stands for published lists, which are taken as they are.
{OVERRIDES}"""

PICTURE = "few_shot.png"


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "fewshot", run, "Train on K videos a class and compare methods", EXAMPLE)
    parser.add_argument("--shots", nargs="+", type=positive, default=[2, 4, 8, 16], help="the Ks (default: 2 4 8 16)")
    add_contenders(parser, "runs/fewshot", (0,))


def run(args: argparse.Namespace) -> None:
    """Run the protocol, print the table, write results.json and few_shot.png."""
    from m2clip import distributed
    from m2clip.plots import pictures as plots
    from m2clip.protocols import comparisons as protocols

    output = Path(args.output)
    check_replaceable(output / "results.json", output / PICTURE)
    try:
        results = protocols.few_shot(
            contenders.read_contenders(args),
            output,
            shots=args.shots,
            seeds=args.seeds,
            device=args.device,
            reporter=contenders.reporter(args),
        )
    finally:
        distributed.shutdown()
    if not contenders.main_process():
        return
    methods = results["methods"]
    picture = plots.few_shot_curves(
        {
            name: {int(k): (found["top1"]["mean"], found["top1"]["std"]) for k, found in by_k.items()}
            for name, by_k in methods.items()
        },
        output / PICTURE,
        untrained={name: scores["top1"] for name, scores in results["frozen"].items()},
        title=f"top-1, {results['classes']} classes",
        chance=results["chance"],
    )
    if args.json:
        print_json(results)
        return
    frozen = [(name, *[f"{100 * found['top1']:.1f}"] * len(args.shots)) for name, found in results["frozen"].items()]
    rows = [(name, *(contenders.spread(by_k[str(k)]["top1"]) for k in args.shots)) for name, by_k in methods.items()]
    header = ("top-1 %", *(f"K={k}" for k in args.shots))
    console().print(table(header, [*frozen, *rows], numbers=len(args.shots)))
    print_line(f"seeds {', '.join(map(str, args.seeds))} | {results['evaluation']}")
    print_line(f"written: {output / 'results.json'}, {picture}")
