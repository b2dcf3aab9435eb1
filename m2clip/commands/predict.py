"""`m2clip predict`: what happens in a video."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared import models
from m2clip.commands.shared.output import console, print_json, print_line, table
from m2clip.commands.shared.parsing import (
    add_clip,
    add_command,
    add_device,
    add_frozen,
    add_json,
    add_labels,
    add_views,
    positive,
)
from m2clip.commands.shared.time_stamps import (
    add_files,
    add_windows,
    check_files,
    check_windows,
    numbered,
    print_timeline,
    timeline_of,
    windows_of,
    write_files,
)
from m2clip.errors import InputError
from m2clip.files.folders import check_apart, check_writable
from m2clip.files.kept_work import check_replaceable

if TYPE_CHECKING:
    from m2clip.methods import VideoModel
    from m2clip.prediction.results import Prediction
    from m2clip.prediction.timeline import Timeline

EXAMPLE = """  m2clip predict clip.mp4 --labels juggling "riding a horse" cooking
  m2clip predict clip.mp4 --run runs/k400 --filmstrip clip.png
  m2clip predict videos/ --run runs/k400 --json
  m2clip predict long.mp4 --run runs/k400 --window 4 --step 1 --timeline long.png

of a folder all videos below it are taken; m2clip label does the same for very many videos or for a list, on several
machines and so that it may be interrupted."""
_LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    parser = add_command(commands, "predict", run, "Name what happens in videos", EXAMPLE)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, folders of frames, folders of videos")
    parser.add_argument("--run", dest="run_folder", help="run folder (default: frozen CLIP)")
    add_labels(parser)
    add_clip(parser)
    add_frozen(parser)
    add_views(parser)
    parser.add_argument("--top", type=positive, default=5, help="how many classes to print (default: 5)")
    parser.add_argument("--filmstrip", help="PNG of the frames that were seen and the five best classes")
    add_windows(parser)
    add_files(parser)
    add_device(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Predict, print, and draw the filmstrips."""
    from m2clip import distributed
    from m2clip.plots import pictures as plots
    from m2clip.prediction.videos import predict_video
    from m2clip.towers.precision import place
    from m2clip.train.setup import clip_settings

    folder = Path(args.run_folder) if args.run_folder else None
    names = models.given_names(args, folder)
    windows, strip = check_windows(args), _filmstrip_path(args)
    if windows:
        windows_of(args)  # impossible ones are refused before the model is loaded
    videos = _all_videos(args.videos)
    check_files(args, len(videos))
    if strip is not None:
        strips = (numbered(strip, number, len(videos)) for number in range(1, len(videos) + 1))
        check_replaceable(*strips, option="--filmstrip")
    model = models.open_labelled(args, folder, names)
    model = place(model, distributed.init(device=args.device), args.precision)
    config = models.run_config(args, folder)
    settings = clip_settings(config, model)

    found: list[dict[str, Any]] = []
    timelines: list[Timeline] = []
    errors: list[InputError] = []
    for number, (video, error) in enumerate(videos, 1):
        try:
            if error is not None:
                raise error
            if windows:
                timelines.append(timeline_of(args, model, video, settings, shown=not args.json))
                found.append(timelines[-1].to_dict())
                if not args.json:
                    print_timeline(timelines[-1], models.display_name(model))
                continue
            prediction = predict_video(model, video, settings=settings, precision=args.precision)
        except InputError as error:
            errors.append(error)
            found.append({"path": str(video), "error": str(error)})
            continue
        found.append(prediction.to_dict(args.top))
        if not args.json:
            _print(prediction, args.top, model)
        if strip is not None:
            drawn = numbered(strip, number, len(videos))
            plots.filmstrip(prediction.frames, prediction.ranked, drawn, title=Path(prediction.path).name)
    write_files(args, timelines, len(videos))
    if args.json:
        print_json(found)
    if errors:
        more = f" ({len(errors)} of {len(videos)} videos failed)" if len(videos) > 1 else ""
        raise InputError(f"{errors[0]}{more}")


def _all_videos(given: Sequence[str]) -> list[tuple[Path, InputError | None]]:
    """All videos, and what is wrong with the paths that are none; InputError where there is no video at all."""
    found: list[tuple[Path, InputError | None]] = []
    for path in map(Path, given):
        try:
            found += [(video, None) for video in _videos(path)]
        except InputError as error:
            found.append((path, error))
    wrong = [error for _, error in found if error is not None]
    if len(wrong) == len(found):
        raise wrong[0]
    return found


def _videos(path: Path) -> list[Path]:
    """The video, or all videos of a folder."""
    from m2clip.at_scale.videos import folder_videos
    from m2clip.data.lists.class_folders import check_there, is_folder
    from m2clip.data.packs.frames import is_pack

    check_there(path, "video file")
    if path.suffix.lower() in _LISTS or is_pack(path):
        raise InputError(f"{path}: a list of videos, not a video; m2clip label takes lists and packs")
    return [item.path for item in folder_videos(path)] if is_folder(path) else [path]


def _print(prediction: Prediction, top: int, model: VideoModel) -> None:
    print_line(f"{prediction.path} ({models.display_name(model)}, {prediction.head})")
    rows = [(name, f"{100 * score:.2f}") for name, score in prediction.ranked[:top]]
    console().print(table(("class", "score %"), rows, numbers=1))


def _filmstrip_path(args: argparse.Namespace) -> Path | None:
    """Where the filmstrip is drawn; of several videos their numbers are added.

    Raises:
        InputError: it is no PNG, which nothing else is overwritten with, or cannot be written.
    """
    if args.filmstrip is None:
        return None
    path = Path(args.filmstrip)
    check_apart(path, *args.videos, option="--filmstrip")
    if path.suffix.lower() != ".png":
        raise InputError(f"--filmstrip {path}: a PNG is drawn; give a name that ends with .png")
    check_writable(path.parent, "--filmstrip")
    return path
