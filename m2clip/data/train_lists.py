"""The lists of a run on somebody's own videos: what can be read of them, split in two, and kept as files.

They are made once. Whoever asks again for the same folder gets the same lists, so that a run resumes with its split.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from m2clip.config_fields import DataConfig
from m2clip.data.check.files import Depth
from m2clip.data.check.lists import REPORT, Report, check_list
from m2clip.data.hold_out import hold_out
from m2clip.data.lists.annotations import Annotations, list_hash, load_annotations, read_rows
from m2clip.data.lists.class_folders import is_folder
from m2clip.data.lists.formats import subfolders
from m2clip.data.lists.rows import Parsed, Row, VideoItem
from m2clip.data.lists.splits import write_list
from m2clip.data.packs.frames import is_pack
from m2clip.errors import InputError, Notice
from m2clip.files.kept_work import check_replaceable, read_record, write_result

FOLDER, RECORD = "lists", "lists.json"
SHARE = 0.2  # held out
MOST_DECODED = 2000  # up to here a clip of each video is decoded; of more videos each is opened and counted
_NAMED = 3
_TRAIN = re.compile(r"train(?:ing)?", re.IGNORECASE)
_VAL = tuple(re.compile(name, re.IGNORECASE) for name in (r"val(?:id(?:ation)?)?", r"dev|eval", r"test(?:ing)?"))

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainLists:
    """The two lists and what was left out of them.

    Attributes:
        source: the folder or list that they were made of.
        digest: of its videos and labels.
        train: name of the list of training, in the folder of the lists.
        val: name of the list of the videos that are held out; None where none are.
        classes: name of the class file of both.
        format: annotation format of both.
        counts: videos of "train" and "val".
        classes_used: classes with a video of training.
        problems: how many lines were left out for each kind of problem.
        told: what to say of the lists, line by line.
    """

    source: str
    digest: str
    train: str
    val: str | None
    classes: str
    format: str
    counts: dict[str, int]
    classes_used: int
    problems: dict[str, int]
    told: list[str] = field(default_factory=list)


def prepare_lists(
    data: DataConfig, folder: Path, seed: int = 0, progress: Progress | None = None, begun: bool = False
) -> TrainLists:
    """Look at all videos, leave out what cannot be trained on, hold some out, and write both lists.

    Args:
        data: train is a folder of class folders, one of train/class/ and val/class/, a list or a pack; val, the splits,
            root, format and classes count as everywhere.
        folder: to write to; where it holds lists of these videos, they are taken.
        seed: of the draw of what is held out.
        progress: called with the numbers of files looked at and of all files.
        begun: whether training on the lists in the folder has begun: then they stay, even where the videos are others.

    Raises:
        InputError: videos that cannot be understood, fewer than two classes, a class of which no video can be read, or
            a folder with files of others.
    """
    if data.train is None:
        raise InputError("which videos? Give a folder with one sub-folder of videos per class, or a list")
    source = Path(data.train)
    train_split, val, val_split = _parts(data, source)
    parsed = _read(data, source, train_split, data.classes)
    digest = list_hash([_item(row) for row in parsed.rows])
    kept = read_record(folder / RECORD)
    if kept and (begun or kept["digest"] == digest):
        return _kept(TrainLists(**kept), source, digest)
    check_replaceable(folder / RECORD)
    found, report = _looked_at(data, source, train_split, data.classes, folder / "check", len(parsed.rows), progress)
    told = _left_out(report, folder / "check")
    problems = Counter(report.counts if report else {})
    _check_classes(parsed, found, source, told)
    names = list(found.class_names or ())
    held: Annotations | None = None
    if val is None:
        train, out = hold_out(found.items, SHARE, seed)
        if out:
            held = _some(found, out)
            told.append(f"held out: {len(out)} of {len(found)} videos, to choose weights and to score by (seed {seed})")
        else:
            told.append("held out: none, as every class has one video only; so there will be no score")
        found = _some(found, train)
    else:
        rows = len(_read(data, val, val_split, names).rows)
        held, report = _looked_at(data, val, val_split, names, folder / "check_val", rows, progress)
        told += _left_out(report, folder / "check_val")
        problems.update(report.counts if report else {})
        where = val / val_split if val_split and val.is_dir() else val
        told.append(f"held out: the {len(held)} videos of {where}, to choose weights and to score by")
    written = write_list(found, folder / "train.txt")
    other = None if held is None else write_list(held, folder / "val.txt")
    formats = {written.format} | ({other.format} if other else set())
    lists = TrainLists(
        source=str(source.absolute()),
        digest=digest,
        train=written.path.name,
        val=None if other is None else other.path.name,
        classes=written.classes.name,
        format=formats.pop() if len(formats) == 1 else "auto",
        counts={"train": len(found), "val": 0 if held is None else len(held)},
        classes_used=len({item.label for item in found.items}),
        problems={kind: count for kind, count in problems.items() if count},
        told=told,
    )
    write_result(asdict(lists), folder / RECORD)
    return lists


def _kept(lists: TrainLists, source: Path, digest: str) -> TrainLists:
    """The lists of an earlier call, where they are of these videos or of what these were when it was made."""
    if lists.digest != digest and lists.source != str(source.absolute()):
        raise InputError(f"the output holds a run on {lists.source}, other videos than {source}: give another --output")
    if lists.digest != digest:
        warnings.warn(
            Notice(
                f"{source}: other videos or labels than when the run began, which goes on with its own lists; give "
                "another --output for a new run"
            ),
            stacklevel=3,
        )
    return lists


def _parts(data: DataConfig, source: Path) -> tuple[str | None, Path | None, str | None]:
    """The split of training, and where the held-out videos are: their list or folder and its split, if there are any.

    A folder of train/ and val/, or another name for these, has both; test/ stands for a missing val/.
    """
    if data.val is not None or data.val_split is not None:
        return data.train_split, Path(data.val or source), data.val_split
    if data.train_split is None and is_folder(source) and not is_pack(source):
        names = sorted(folder.name for folder in subfolders(source))
        train = [name for name in names if _TRAIN.fullmatch(name)]
        held = [name for pattern in _VAL for name in names if pattern.fullmatch(name)]
        if train and held and len(train) + len(held) == len(names):
            return train[0], source, held[0]
    return data.train_split, None, None


def _read(data: DataConfig, path: Path, split: str | None, classes: str | Sequence[str] | None) -> Parsed:
    with warnings.catch_warnings():  # whoever looks at the files reads it again, and tells
        warnings.simplefilter("ignore", Notice)
        return read_rows(path, root=data.root, format=data.format, class_names=classes, split=split)[0]


def _looked_at(
    data: DataConfig,
    path: Path,
    split: str | None,
    classes: str | Sequence[str] | None,
    output: Path,
    rows: int,
    progress: Progress | None,
) -> tuple[Annotations, Report | None]:
    """The videos that can be trained on, and what was found out about the others."""
    reading: dict[str, Any] = {"root": data.root, "format": data.format, "class_names": classes, "split": split}
    if is_pack(path):
        found, report = load_annotations(path, **reading), None  # which was checked when it was made
    else:
        depth = Depth("sampled" if rows <= MOST_DECODED else "count", num_frames=data.num_frames, reader=data.reader)
        keep = ("mislabelled",) if data.allow_mismatched_folders else ()
        report = check_list(path, output, depth=depth, keep=keep, progress=progress, **reading)
        if report.clean_list is None:
            raise InputError(f"{path}: none of its {report.videos} videos can be read; see {output / REPORT}")
        named = report.class_file
        found = load_annotations(report.clean_list, root=output, class_names=named, allow_mismatched_folders=True)
    if found.class_names is None:
        raise InputError(f"{path} gives class numbers but no names: give --data.classes, a label set or a class file")
    return found, report


def _left_out(report: Report | None, output: Path) -> list[str]:
    """Lines on what a check has found, kind by kind, with the first of each."""
    if report is None or report.clean == report.videos:
        return []
    out = report.videos - report.clean
    lines = [f"left out: {out} of {report.videos} videos, all named in {output / REPORT}"]
    for kind in (kind for kind, count in report.counts.items() if count):
        problems = [problem for problem in report.problems if problem.kind == kind]
        for problem in problems[:_NAMED]:
            lines.append(f"  {kind}: {problem.path}: {problem.message.removeprefix(f'{problem.path}: ')}")
        if len(problems) > _NAMED:
            lines.append(f"  {kind}: {len(problems) - _NAMED} more")
    return lines


def _check_classes(parsed: Parsed, found: Annotations, source: Path, told: Sequence[str]) -> None:
    """InputError where a class has lost all its videos, or where there are not two classes."""
    names = list(found.class_names or ())
    left = {item.label for item in found.items}
    lost = sorted({row.label for row in parsed.rows if 0 <= row.label < len(names)} - left)
    if lost:
        shown = ", ".join(repr(names[label]) for label in lost[:_NAMED])
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        why = "; ".join(line.strip() for line in told[:2])
        raise InputError(
            f"{source}: no video of class {shown}{more} can be trained on: mend them, or take the class out ({why})"
        )
    if len(left) < 2:
        raise InputError(
            f"{source}: has videos of one class only, {names[min(left)]!r}: training needs two or more class folders"
        )


def _item(row: Row) -> VideoItem:
    """What a line names, all of it but the place of the line."""
    return VideoItem(**{entry.name: getattr(row, entry.name) for entry in fields(row) if entry.name != "where"})


def _some(annotations: Annotations, places: Sequence[int]) -> Annotations:
    return Annotations(
        tuple(annotations.items[place] for place in places),
        annotations.class_names,
        annotations.format,
        annotations.source,
    )
