"""Training steps and forward passes of two checkouts, in turns: whether what worked before is slower now.

    python benchmarks/checkouts.py FOLDER --rounds 15
    python benchmarks/checkouts.py FOLDER --cases "step of m2clip on tiny" --rounds 3     a quick look

FOLDER is what has to be on Python's path to import the other m2clip, whose kernels are compiled: of a checkout, its
src. Each m2clip runs in a process of its own. In every round each case takes its turn, in one process right after the
other, and in the other order in the next round. Both have the same CLIP, of random weights, and the run stops where
their features are not equal before training. A step is forward, backward and AdamW; a forward pass gives features.
Seconds are of the processor, which other programs on the machine lengthen little; with one thread they are the time.
"ratio" is now by before, round by round: above 1 is slower. Writes checkouts.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("m2clip", "msta", "st_adapter", "aim", "ma_fsar")
SHAPES = {"tiny": (4, 8), "ViT-B-16-quickgelu": (1, 2)}  # clips and frames
STEPS = {f"step of m2clip on {clip}": ("m2clip", clip) for clip in SHAPES}
CASES = STEPS | {f"forward of {method} on {clip}": (method, clip) for clip in SHAPES for method in METHODS}
TURN = 0.3  # seconds that a turn has at least, by several calls where one is faster
TOLERANCE = 1e-4


class Case:
    """What is timed, of the m2clip on the path.

    Args:
        name: a name of `CASES`.
        clips: CLIPs by name, which cases share; one that is missing is added.
    """

    def __init__(self, name: str, clips: dict[str, Any]) -> None:
        import m2clip

        method, clip_name = CASES[name]
        number, frames = SHAPES[clip_name]
        options: dict[str, Any] = {"msta": {"alpha": 0.0}}.get(method, {})
        if clip_name not in clips:
            clips[clip_name] = m2clip.load_clip(clip_name, None)
            _fill(clips[clip_name].named_parameters())
        torch.manual_seed(0)
        classes = [f"action {number}" for number in range(8)]
        self.model: Any = m2clip.create_model(
            method, clips[clip_name], class_names=classes, num_frames=frames, **options
        )
        self.video = torch.randn(number, frames, 3, *self.model.image_size)
        self.labels = torch.arange(number)
        with torch.no_grad():  # of adapters that change nothing yet
            self.value = self.model.eval().encode(self.video)[1].abs().mean().item()
        # Zeros multiply faster than numbers.
        _fill((name, own) for name, own in self.model.named_parameters() if own.requires_grad)
        self.run = self._step() if name in STEPS else self._forward

    def _forward(self) -> None:
        with torch.no_grad():
            self.model.encode(self.video)

    def _step(self) -> Callable[[], None]:
        model = self.model.train()
        drawn = model.draw(self.labels, torch.Generator().manual_seed(0))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)  # every step starts from the same weights

        def step() -> None:
            model.loss(self.video, self.labels, drawn=drawn).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def _fill(parameters: Any) -> None:
    """Random numbers that depend on the name alone; norms and scales stay near 1."""
    with torch.no_grad():
        for name, parameter in parameters:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)


def serve(threads: int) -> None:
    """Answer lines of standard input, a case and a number of calls, with their mean seconds and the case's value."""
    torch.set_num_threads(threads)
    cases: dict[str, Case] = {}
    clips: dict[str, Any] = {}
    for line in sys.stdin:
        name, calls = json.loads(line)
        if name not in cases:
            cases[name] = Case(name, clips)
            cases[name].run()
        start = time.process_time()
        for _ in range(calls):
            cases[name].run()
        print(json.dumps([(time.process_time() - start) / calls, cases[name].value]), flush=True)


class Checkout:
    """A process that imports one m2clip.

    Args:
        path: folder on its path.
        threads: of torch.
        stack: ends it.
    """

    def __init__(self, path: Path, threads: int, stack: ExitStack) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path.resolve()), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--threads", str(threads)]
        self._process = stack.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def ask(self, name: str, calls: int) -> tuple[float, float]:
        """Seconds of a call of a case, and its value."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps([name, calls])}\n")
        self._process.stdin.flush()
        seconds, value = json.loads(self._process.stdout.readline())
        return seconds, value


def measure(folders: dict[str, Path], names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """By case the seconds of both and their ratio."""
    from benchmarks.measure import ratio, summary

    seconds: dict[str, dict[str, list[float]]] = {name: {which: [] for which in folders} for name in names}
    with ExitStack() as stack:
        checkouts = {which: Checkout(path, threads, stack) for which, path in folders.items()}
        calls = {}
        for name in names:
            first = {which: checkout.ask(name, 1) for which, checkout in checkouts.items()}
            before, now = (value for _, value in first.values())
            if not abs(now - before) <= TOLERANCE * abs(before):
                sys.exit(f"{name}: the features differ: {before} before, {now} now")
            calls[name] = max(1, round(TURN / min(taken for taken, _ in first.values())))
        for number in range(rounds):
            order = list(checkouts.items())[:: -1 if number % 2 else 1]
            for name in names:
                for which, checkout in order:
                    seconds[name][which].append(checkout.ask(name, calls[name])[0])
    return {
        name: {**{which: summary(taken) for which, taken in both.items()}, "ratio": ratio(both["now"], both["before"])}
        for name, both in seconds.items()
    }


def commit_of(path: Path) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", str(path), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import measure as common
    from benchmarks.tables import digits, spread
    from m2clip.commands.shared.output import console, table

    parser = common.parser(__doc__, "--rounds", "--threads", rounds=15, writes="JSON")
    parser.add_argument("folder", type=Path, help="where the other m2clip is imported from")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), metavar="CASE")
    args = parser.parse_args()
    cases = measure({"before": args.folder, "now": ROOT / "src"}, args.cases, args.rounds, args.threads)
    torch.set_num_threads(args.threads)
    settings = {"shapes": {clip: {"clips": n, "frames": t} for clip, (n, t) in SHAPES.items()}, "dtype": "float32"}
    content = {"setting": settings, "before_commit": commit_of(args.folder), "cases": cases}
    path = common.write_results("checkouts", torch.device("cpu"), content, args.out)
    rows = [
        (name, *(digits(found[which]["median"]) for which in ("before", "now")), digits(found["ratio"]["median"]))
        + (spread(found["ratio"]),)
        for name, found in cases.items()
    ]
    console().print(table(("", "before, s", "now, s", "ratio", "spread"), rows, numbers=4))
    print(path)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        own = ArgumentParser()
        own.add_argument("--serve", action="store_true")
        own.add_argument("--threads", type=int)
        serve(own.parse_args().threads)
    else:
        main()
