"""`m2clip predict`: what happens in a video."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.parsing import add_clip, add_command, add_device, add_json, add_views, positive

if TYPE_CHECKING:
    from m2clip.methods import VideoModel
    from m2clip.predict import Prediction

EXAMPLE = """  m2clip predict clip.mp4 --labels juggling "riding a horse" cooking
  m2clip predict clip.mp4 --run runs/k400 --filmstrip clip.png"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "predict", run, "Name what happens in videos", EXAMPLE)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument("--run", dest="run_folder", help="run folder (default: frozen CLIP)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", nargs="+", help="class names to choose from (default: the run's own)")
    labels.add_argument("--labels-file", help="bundled label set (k400, ...) or class file")
    add_clip(parser)
    parser.add_argument("--frames", type=positive, default=8, help="frames of a clip for frozen CLIP (default: 8)")
    add_views(parser)
    parser.add_argument("--top", type=positive, default=5, help="how many classes to print (default: 5)")
    parser.add_argument("--filmstrip", help="PNG of the frames that were seen and the five best classes")
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Predict, print, and draw the filmstrips."""
    from m2clip import distributed, plots
    from m2clip.commands import models
    from m2clip.commands.output import print_json
    from m2clip.data.label_sets import load_class_names
    from m2clip.errors import InputError
    from m2clip.predict import predict_video

    folder = Path(args.run_folder) if args.run_folder else None
    names = args.labels or (load_class_names(args.labels_file) if args.labels_file else None)
    if folder is None and names is None:
        raise InputError("which classes? Give --labels, --labels-file, or a run folder with --run")
    missing = next((video for video in args.videos if not Path(video).exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such video file")
    model = models.open_run(folder, args) if folder else models.open_frozen(args, names or [], args.frames)
    if names is not None and names != model.class_names:
        model.set_class_names(names)
    model = models.place(model, distributed.init(device=args.device), args.precision)
    config = models.run_config(args, folder)
    settings = models.clip_settings(config, model)

    predictions: list[Prediction] = []
    errors: list[InputError] = []
    for video in args.videos:
        try:
            predictions.append(predict_video(model, video, settings=settings, precision=args.precision))
        except InputError as error:
            errors.append(error)
    if args.json:
        print_json([prediction.to_dict(args.top) for prediction in predictions])
    else:
        for prediction in predictions:
            _print(prediction, args.top, model)
    for path, prediction in zip(_filmstrip_paths(args.filmstrip, len(predictions)), predictions, strict=False):
        plots.filmstrip(prediction.frames, prediction.ranked, path, title=Path(prediction.path).name)
    if errors:
        more = f" ({len(errors)} of {len(args.videos)} videos failed)" if len(args.videos) > 1 else ""
        raise InputError(f"{errors[0]}{more}")


def _print(prediction: Prediction, top: int, model: VideoModel) -> None:
    from m2clip.commands import models
    from m2clip.commands.output import console, print_line, table

    print_line(f"{prediction.path} ({models.display_name(model)}, {prediction.head})")
    rows = [(name, f"{100 * score:.2f}") for name, score in prediction.ranked[:top]]
    console().print(table(("class", "score %"), rows, numbers=1))


def _filmstrip_paths(path: str | None, count: int) -> list[Path]:
    """One name a video: the given one, numbered where there are several."""
    if path is None:
        return []
    first = Path(path)
    if count <= 1:
        return [first]
    return [first.with_name(f"{first.stem}_{number}{first.suffix or '.png'}") for number in range(1, count + 1)]
