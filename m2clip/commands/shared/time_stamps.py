"""What commands share that say when something happens in a video: the options of windows, tables and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.commands.shared.output import console, print_line, table
from m2clip.commands.shared.parsing import seconds, share
from m2clip.errors import InputError
from m2clip.files.folders import check_apart, check_writable

if TYPE_CHECKING:
    from m2clip.data.clips import ClipSettings
    from m2clip.methods import VideoModel
    from m2clip.prediction.segments import SegmentRule
    from m2clip.prediction.timeline import Timeline
    from m2clip.prediction.windows import WindowSettings

_FILES = {"csv": ".csv", "srt": ".srt", "timeline": ".png"}


def add_windows(parser: Any) -> None:
    """--window and what belongs to it."""
    group = parser.add_argument_group("when something happens")
    group.add_argument("--window", type=seconds, help="seconds of a window that is moved over the video")
    group.add_argument("--step", type=seconds, help="seconds between windows (default: a quarter of the window)")
    group.add_argument("--threshold", type=share, help="score that a segment reaches in some window (default: 0.5)")
    group.add_argument("--low", type=share, help="score that its other windows have (default: half of the threshold)")
    group.add_argument(
        "--min-length", type=seconds, help="seconds of the shortest segment (default: half of the window)"
    )


def add_files(group: Any) -> None:
    """--csv, --srt and --timeline."""
    group.add_argument("--csv", help="file of the segments, a line for each")
    group.add_argument("--srt", help="file of subtitles that show the segments in a player")
    group.add_argument("--timeline", help="PNG of frames, scores and segments over time")


def check_windows(args: argparse.Namespace) -> bool:
    """Whether windows are meant.

    Raises:
        InputError: options that need --window without it, that say nothing with it, or files that cannot be written.
    """
    if args.window is None:
        for name in ("step", "threshold", "low", "min_length", *_FILES):
            if getattr(args, name, None) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for windows of a long video: give --window too")
        return False
    for name in ("clips", "sampling", "stride", "filmstrip"):
        if getattr(args, name, None) is not None:
            raise InputError(f"--{name} says nothing with --window, whose frames are evenly spread: drop it")
    for name, suffix in _FILES.items():
        if (given := getattr(args, name, None)) is not None:
            path = Path(given)
            check_apart(path, *args.videos, option=f"--{name}")
            if path.suffix.lower() != suffix:
                raise InputError(f"--{name} {path}: give a name that ends with {suffix}")
            check_writable(path.parent, f"--{name}")
    return True


def check_files(args: argparse.Namespace, count: int) -> None:
    """InputError where a file of --csv, --srt or --timeline is there already, and no earlier result.

    Args:
        args: parsed arguments.
        count: how many videos were given.
    """
    from m2clip.files.kept_work import check_replaceable
    from m2clip.prediction.timeline import is_csv, is_srt

    def all_of(given: str | None) -> list[Path]:
        return [] if given is None else [numbered(Path(given), number, count) for number in range(1, count + 1)]

    check_replaceable(*all_of(args.timeline), option="--timeline")
    for option, paths, is_own in (
        ("--csv", [Path(args.csv)] if args.csv else [], is_csv),
        ("--srt", all_of(args.srt), is_srt),
    ):
        wrong = next((path for path in paths if path.exists() and not is_own(path)), None)
        if wrong is not None:
            raise InputError(f"{wrong} is there already, and no earlier result: move it away, or give another {option}")


def windows_of(args: argparse.Namespace) -> tuple[WindowSettings, SegmentRule]:
    """How windows lie and when they make a segment; InputError where that is impossible."""
    from m2clip.prediction.segments import SegmentRule
    from m2clip.prediction.windows import WindowSettings

    threshold = 0.5 if args.threshold is None else args.threshold
    return WindowSettings.of(args.window, args.step), SegmentRule.for_window(
        args.window, threshold, args.low, args.min_length
    )


def timeline_of(
    args: argparse.Namespace, model: VideoModel, video: Path, settings: ClipSettings, shown: bool
) -> Timeline:
    """The timeline of a video, with a progress bar of the video's time."""
    from m2clip.commands.shared.output import progress_bar
    from m2clip.prediction.timeline import clock
    from m2clip.prediction.windows import score_windows

    windows, rule = windows_of(args)
    with progress_bar(video.name, shown, lambda at: clock(at).partition(".")[0]) as progress:
        return score_windows(model, video, windows, rule, settings, precision=args.precision, progress=progress)


def print_timeline(timeline: Timeline, name: str) -> None:
    """A table of the segments."""
    from m2clip.prediction.timeline import clock

    print_line(f"{timeline.path} ({name}, {timeline.head}, {clock(timeline.duration)})")
    if not timeline.segments:
        print_line("no segment reaches the threshold")
        return
    rows = [(clock(start), clock(end), what, f"{100 * score:.2f}") for start, end, what, score in timeline.rows()]
    console().print(table(("start", "end", "class", "score %"), rows, numbers=1))


def write_files(args: argparse.Namespace, timelines: Sequence[Timeline], count: int) -> None:
    """The files of --csv, --srt and --timeline; subtitles and pictures of several videos have their numbers.

    Args:
        args: parsed arguments.
        timelines: of the videos that could be read.
        count: how many videos were given.
    """
    from m2clip.files.disk import write_text
    from m2clip.prediction.timeline import segments_csv

    if args.csv is not None:
        write_text(segments_csv(timelines), Path(args.csv))
    for number, timeline in enumerate(timelines, 1):
        if args.srt is not None:
            write_text(timeline.to_srt(), numbered(Path(args.srt), number, count))
        if args.timeline is not None:
            timeline.plot(numbered(Path(args.timeline), number, count))


def numbered(path: Path, number: int, count: int) -> Path:
    """The path, of several videos with the number of one."""
    return path if count == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
