"""The files that a scored model leaves: scores, confusion, predictions, classes, and its most confident mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from m2clip.commands.shared.output import percent, table
from m2clip.evaluate.tables import (
    PREDICTIONS,
    class_scores,
    confident_mistakes,
    write_classes,
    write_predictions,
)
from m2clip.files.kept_work import check_replaceable, write_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from torch import Tensor

    from m2clip.data.clips import ClipSettings
    from m2clip.data.lists.rows import VideoItem
    from m2clip.evaluate.results import EvalResult

CLASSES_SHOWN = 20
_FRAME_SIDE = 160  # of a frame on the sheet, in pixels


class OutcomeFiles(NamedTuple):
    """Where what was found is written."""

    scores: Path
    confusion: Path
    predictions: Path
    classes: Path
    mistakes: Path

    @classmethod
    def of(cls, folder: Path, stem: str) -> OutcomeFiles:
        """The files in a folder whose names begin with `stem`.

        Raises:
            InputError: one of them is there and is not of this program.
        """
        ends = (".json", "_confusion.png", f"_{PREDICTIONS}", "_classes.csv", "_mistakes.png")
        files = cls(*(folder / f"{stem}{end}" for end in ends))
        check_replaceable(*files)
        return files


def write_outcome(
    value: dict[str, Any],
    result: EvalResult,
    items: Sequence[VideoItem],
    settings: ClipSettings,
    files: OutcomeFiles,
    title: str,
) -> list[Path]:
    """Write all files; returns those that were written, without the sheet where no video was taken for another class.

    Args:
        value: for the JSON file.
        result: what was found.
        items: the videos of its list.
        settings: how clips are drawn from them.
        files: where to write.
        title: of the confusion matrix.
    """
    from m2clip.plots.confusion import confusion_matrix

    main = result.main
    written = [
        write_result(value, files.scores),
        confusion_matrix(main.confusion, result.class_names, files.confusion, title, main.unreadable),
        write_predictions(result, items, files.predictions),
        write_classes(result, files.classes),
    ]
    files.mistakes.unlink(missing_ok=True)  # of an earlier call
    return written + _draw_mistakes(result, items, settings, files.mistakes)


def _draw_mistakes(result: EvalResult, items: Sequence[VideoItem], settings: ClipSettings, path: Path) -> list[Path]:
    from m2clip.data.video.base import VideoError
    from m2clip.plots.mistakes import MOST, Mistake, contact_sheet

    names, wrong = result.class_names, confident_mistakes(result)
    shown: list[Mistake] = []
    for video in wrong:
        item, answer = items[video.index], video.answers[result.main_head]
        try:
            frames = _frames(item, settings)
        except VideoError:  # its file is gone meanwhile
            continue
        part = "" if item.segment is None else f" {item.segment}"
        classes = names[video.label], answer.true_score, names[answer.predicted], answer.score
        shown.append(Mistake(frames, f"{Path(*item.path.parts[-2:])}{part}", *classes))
        if len(shown) == MOST:
            break
    if not shown:
        return []
    which = f"the {len(shown)} most confident of " if len(shown) < len(wrong) else ""
    what = "mistake" if len(wrong) == 1 else "mistakes"
    return [contact_sheet(shown, path, f"{result.name}: {which}{len(wrong)} {what}")]


def _frames(item: VideoItem, settings: ClipSettings) -> Tensor:
    """A few frames of the middle clip, small, (T, 3, h, w) uint8."""
    from torch.nn.functional import interpolate

    from m2clip.data.clips import open_item
    from m2clip.plots.mistakes import FRAMES

    with open_item(item, settings) as opened:
        indices = settings.indices(opened.num_frames, clip=settings.clips // 2, num_clips=settings.clips)
        some = min(FRAMES, len(indices))
        frames = opened.read([indices[place * len(indices) // some] for place in range(some)])
    scale = _FRAME_SIDE / max(frames.shape[-2:])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[-2:]]
    return interpolate(frames.float(), size, mode="area").round().byte()


def class_table(result: EvalResult) -> Table:
    """The classes that have videos with their top-1 and what they are taken for, the worst first."""
    found = [one for one in class_scores(result.main, result.class_names) if one.videos]
    cells = []
    for one in found[:CLASSES_SHOWN]:
        confusion = f"{one.confused_with} ({one.confused})" if one.confused_with else ""
        cells.append((one.name, confusion, str(one.videos), percent(one.accuracy)))
    if len(found) > CLASSES_SHOWN:
        cells.append((f"... and {len(found) - CLASSES_SHOWN} better classes", "", "", ""))
    return table(("class, worst first", "most often taken for", "videos", "top-1 %"), cells, numbers=2)


def outcome_lines(result: EvalResult) -> list[str]:
    """What to say where classes have no video, and where there are no mistakes to draw."""
    lines = []
    if result.main.empty_classes:
        lines.append(f"classes without a video, left out of the mean over classes: {result.main.empty_classes}")
    if not confident_mistakes(result):
        lines.append("no video was taken for another class: there is no picture of mistakes")
    return lines
