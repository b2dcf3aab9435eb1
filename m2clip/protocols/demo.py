"""The demonstration: what frozen CLIP cannot see and M2-CLIP learns, on videos rendered here, in minutes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m2clip.checkpoints.adapters import load_adapters
from m2clip.config import load_config
from m2clip.data.built_in.motion import render_dataset
from m2clip.data.clips import ClipDataset
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.lists.label_sets import load_class_names
from m2clip.evaluate.results import EvalResult
from m2clip.evaluate.scoring import evaluate_model
from m2clip.files.kept_work import check_replaceable, write_result
from m2clip.methods import create_model
from m2clip.plots.pictures import ExampleClip, demo_picture
from m2clip.prediction.videos import predict_video
from m2clip.towers.loading import load_clip
from m2clip.train.setup import clip_settings
from m2clip.train.trainer import run

CONFIG = "m2clip_demo"
CLIPS_PER_CLASS = {"train": 100, "val": 10}
EXAMPLES = (("base_val", 60), ("base_val", 300), ("novel_val", 180), ("novel_val", 132))  # list, line in the list


def run_demo(
    output: str | Path = "demo",
    *,
    seed: int = 0,
    clips_per_class: dict[str, int] = CLIPS_PER_CLASS,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Render videos, train M2-CLIP on two thirds of the classes, compare with frozen CLIP, and draw the picture.

    A call that was stopped is repeated where it left off: rendered clips and training steps are kept.

    Args:
        output: folder for videos/, run/, results.json and demo.png.
        seed: fixes videos, initial weights and the order of training.
        clips_per_class: how many clips of a class are rendered for "train" and "val".
        overrides: fields of the configuration in place of the demo's, as in "--optim.epochs=1".
        say: receives a line of text where something is worth telling; None keeps quiet.

    Returns:
        What results.json holds: accuracies, number of classes and videos, seconds of each part.

    Raises:
        InputError: a folder that cannot be written or holds another run, or a file that would be replaced and is no
            result of a demo.
    """
    output = Path(output)
    check_replaceable(output / "results.json", output / "demo.png")
    videos, seconds = output / "videos", dict[str, float]()
    with _timed(seconds, "render"), _progress("rendering videos", quiet=say is None) as progress:
        render_dataset(videos, clips_per_class, seed=seed, progress=progress)
    paths = {"train": "base_train.txt", "val": "base_val.txt", "classes": "base_classes.csv"}
    config = load_config(CONFIG, [*(f"--data.{key}={videos / name}" for key, name in paths.items()), *overrides])
    config.output, config.seed = str(output / "run"), seed
    # So that few epochs need no second override.
    config.optim.warmup_epochs = min(config.optim.warmup_epochs, config.optim.epochs / 2)
    with _timed(seconds, "train"):
        run(config, quiet=say is None)
    with _timed(seconds, "evaluate"):
        models = {
            "frozen CLIP": create_model("clip", load_clip("tiny"), ["a"], config.data.num_frames),
            "M2-CLIP": load_adapters(output / "run"),
        }
        scores = {
            (name, part): evaluate_part(model, videos, part, config)
            for name, model in models.items()
            for part in ("base", "novel")
        }
    results: dict[str, Any] = {
        "accuracy": {name: {part: scores[name, part].top1 for part in ("base", "novel")} for name in models},
        "similarity": {
            name: {part: scores[name, part].heads["zero-shot"].top1 for part in ("base", "novel")} for name in models
        },
        "classes": {part: len(scores["M2-CLIP", part].class_names) for part in ("base", "novel")},
        "videos": {part: scores["M2-CLIP", part].denominator for part in ("base", "novel")},
        "protocol": scores["M2-CLIP", "novel"].settings_line(),
        "seed": seed,
    }
    strips = [_example(models, videos, name, line) for name, line in EXAMPLES]
    classes = results["classes"]
    titles = {"base": f"{classes['base']} trained", "novel": f"{classes['novel']} new"}
    drawn = {name: {titles[part]: top1 for part, top1 in parts.items()} for name, parts in results["accuracy"].items()}
    chance = {titles[part]: 1 / count for part, count in classes.items()}
    picture = demo_picture(drawn, strips, output / "demo.png", chance)
    results["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    write_result(results, output / "results.json")
    if say is not None:
        _tell(results, picture, say)
    return results


def evaluate_part(model: Any, videos: Path, part: str, config: Any) -> EvalResult:
    """Score a model on the held-out videos of the "base" or "novel" classes in a folder of rendered videos."""
    names = load_class_names(videos / f"{part}_classes.csv")
    annotations = load_annotations(videos / f"{part}_val.txt", root=videos, class_names=names)
    dataset = ClipDataset(annotations, clip_settings(config, model))
    return evaluate_model(model, dataset, config.eval, class_names=names, workers=config.data.workers)


def _example(models: dict[str, Any], videos: Path, list_name: str, line: int) -> Any:
    """A clip at a fixed line of a list, with what each model says of it; not chosen by who is right."""
    names = load_class_names(videos / f"{list_name.removesuffix('_val')}_classes.csv")
    items = load_annotations(videos / f"{list_name}.txt", root=videos, class_names=names).items
    item = items[line % len(items)]
    said = []
    for model in models.values():
        said.append(predict_video(model, item.path, class_names=names))
    return ExampleClip(said[0].frames, names[item.label], said[0].ranked[:3], said[1].ranked[:3])


def _tell(results: dict[str, Any], picture: Path, say: Callable[[str], None]) -> None:
    from rich.console import Console
    from rich.table import Table

    classes, accuracy = results["classes"], results["accuracy"]
    table = Table(title="top-1 accuracy on held-out videos")
    for column in ("", f"{classes['base']} trained classes", f"{classes['novel']} new classes (zero-shot)"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"chance": {part: 1 / count for part, count in classes.items()}, **accuracy}
    for name, parts in rows.items():
        table.add_row(name, *(f"{100 * parts[part]:.1f} %" for part in ("base", "novel")))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    say(capture.get().rstrip())
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    say(f"{results['protocol']}")
    say(spent)
    say(f"picture: {picture}")


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=quiet) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
