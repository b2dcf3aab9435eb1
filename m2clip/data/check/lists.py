"""Checking a list of videos before hours of training depend on it.

Every file is looked at once, whichever lines name it. What is wrong with a line is one or more of `PROBLEMS`; a list of
the lines with which nothing is wrong is written beside a report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from m2clip.data.check.files import (
    Depth,
    FileFacts,
    Record,
    in_threads,
    is_record,
    key_of,
    look_at,
    stamp_of,
    whole_hash,
)
from m2clip.data.lists.annotations import load_annotations, read_rows
from m2clip.data.lists.class_files import class_table
from m2clip.data.lists.folder_labels import contradicted
from m2clip.data.lists.lines import list_text
from m2clip.data.lists.rows import Parsed, Row
from m2clip.data.segment import Segment
from m2clip.errors import InputError
from m2clip.files.disk import replacing, write_json, write_text
from m2clip.files.folders import check_apart, check_writable, locked

PROBLEMS = {
    "missing": "there is no such file",
    "unreadable": "it cannot be opened, or a frame cannot be decoded",
    "damaged": "it has over 10 % fewer frames than its container declares (frame count or duration), or its line",
    "segment": "the part is empty, starts before its video, or ends after it",
    "duplicate": "the path, or another file of the same content, is on an earlier line",
    "mislabelled": "copies have different labels, the label is no class, or the folder is named as another class",
}
REPORT, CLEAN, CLASSES, RECORD = "report.json", "clean.txt", "classes.csv", "files.jsonl"
_LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one line.

    Attributes:
        kind: a key of `PROBLEMS`.
        path, label: of the line.
        where: file and line.
        message: what is wrong.
        segment: start and end of the part in seconds ("12.5-14"); None where the line means the whole video.
    """

    kind: str
    path: str
    label: int
    where: str
    message: str
    segment: str | None = None


@dataclass
class Report:
    """What a check found.

    Attributes:
        source, format: the list and its format.
        videos: lines of the list.
        clean: lines that are in the clean list.
        decode, num_frames: how closely files were looked at.
        looked_at: files that were looked at now; of the others the results of an earlier call were taken.
        problems: in the order of the list.
        clean_list, class_file: what was written; None where nothing is left, or no class names are known.
        left_out: what a folder holds besides videos, as in `m2clip.data.lists.class_folders.LeftOut.to_dict`.
    """

    source: str
    format: str
    videos: int
    decode: str
    num_frames: int
    clean: int = 0
    looked_at: int = 0
    problems: list[Problem] = field(default_factory=list)
    clean_list: str | None = None
    class_file: str | None = None
    left_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many lines have each kind of problem."""
        found = Counter(kind for kind, _ in {(problem.kind, problem.where) for problem in self.problems})
        return {kind: found[kind] for kind in PROBLEMS}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "counts": self.counts, "meaning": PROBLEMS}


def default_output(path: Path) -> Path:
    """The folder `NAME.check` beside a list."""
    path = path.resolve()
    return path.with_name(f"{path.stem if path.is_file() else path.name}.check")


def check_list(
    path: str | Path,
    output: str | Path | None = None,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    class_names: str | Path | Sequence[str] | None = None,
    split: str | int | None = None,
    depth: Depth | None = None,
    keep: Collection[str] = (),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a list of videos; write a report and the list of what is good.

    A call that was ended in any way is taken up where it stopped: files whose size and time of change are the same are
    not looked at again.

    Args:
        path: as for `m2clip.data.lists.annotations.load_annotations`.
        root: as for `m2clip.data.lists.annotations.load_annotations`.
        format: as for `m2clip.data.lists.annotations.load_annotations`.
        class_names: as for `m2clip.data.lists.annotations.load_annotations`.
        split: as for `m2clip.data.lists.annotations.load_annotations`.
        output: folder to write to; default: `default_output`.
        depth: how closely files are looked at.
        keep: kinds of problems that do not keep a line out of the clean list.
        workers: how many videos are decoded at a time; default: one for each core.
        progress: called with the numbers of files done and of all files.

    Raises:
        InputError: a list that cannot be understood, an unknown kind, or an output that cannot be written or that would
            replace the input.
    """
    path = Path(path)
    parsed, chosen = read_rows(path, root=root, format=format, class_names=class_names, split=split)
    output = Path(output) if output is not None else default_output(path)
    _check_arguments(path, output, chosen, parsed, keep)
    check_writable(output)
    depth = depth or Depth()
    report = Report(str(path), chosen, len(parsed.rows), depth.decode, depth.num_frames)
    report.left_out = [parsed.left_out] if parsed.left_out else []
    workers = workers or len(os.sched_getaffinity(0))
    with locked(output, "check"), closing(Record(output / RECORD, depth)) as record:
        facts, report.looked_at = _look_at_all(parsed.rows, depth, record, workers, progress)
        _compare_contents(parsed.rows, facts, record, workers)
    folders = contradicted(parsed.rows, parsed.class_names or ())
    by_row = [
        _own_problems(row, facts[key_of(row)], parsed.class_names, folders.get(place))
        for place, row in enumerate(parsed.rows)
    ]
    _find_copies(parsed.rows, facts, by_row)
    report.problems = [problem for of_row in by_row for problem in of_row]
    good = [
        row
        for row, of_row in zip(parsed.rows, by_row, strict=True)
        if all(problem.kind in keep for problem in of_row) and _writable(row, parsed)
    ]
    report.clean = len(good)
    if good:
        _write_clean(good, parsed, output)
        report.clean_list = str(output / CLEAN)
        report.class_file = str(output / CLASSES) if parsed.class_names is not None else None
    write_json(report.to_dict(), output / REPORT)
    return report


def _check_arguments(path: Path, output: Path, chosen: str, parsed: Parsed, keep: Collection[str]) -> None:
    unknown = [kind for kind in keep if kind not in PROBLEMS]
    if unknown:
        raise InputError(f"unknown kind of problem {unknown[0]!r}; choose from {', '.join(PROBLEMS)}")
    if chosen == "shards":
        raise InputError(f"{path}: a pack keeps checksums of its own; check the list that it was packed from")
    if not parsed.rows:
        raise InputError(f"{path}: lists no videos")
    check_apart(output, path)
    written = [output / name for name in (RECORD, CLEAN, CLASSES, REPORT)]
    for file in written:
        if file.exists() and path.exists() and file.samefile(path):
            raise InputError(f"{path}: would be replaced by what is written to {output}; give another --output")
    other = None if is_record(output / RECORD) else next(filter(os.path.lexists, written), None)
    if other is not None:
        raise InputError(f"{other} is of no check, and would be replaced; give another --output")


def _look_at_all(
    rows: Sequence[Row], depth: Depth, record: Record, workers: int, progress: Callable[[int, int], None] | None
) -> tuple[dict[str, FileFacts | None], int]:
    """The facts about each file, None where it is missing, and how many files had to be looked at."""
    facts: dict[str, FileFacts | None] = {}
    left: list[tuple[Row, list[int]]] = []
    for row in {key_of(row): row for row in rows}.values():
        stamp = stamp_of(row)
        facts[key_of(row)] = known = None if stamp is None else record.known(key_of(row), stamp)
        if stamp is not None and known is None:
            left.append((row, stamp))
    done = len(facts) - len(left)
    for (row, _), found in in_threads(lambda one: look_at(*one, depth), left, workers):
        facts[key_of(row)] = found
        record.add(key_of(row), found)
        done += 1
        if progress is not None:
            progress(done, len(facts))
    return facts, len(left)


def _compare_contents(rows: Sequence[Row], facts: dict[str, FileFacts | None], record: Record, workers: int) -> None:
    """Hash all the content of files whose sizes and parts are the same."""
    of_parts: dict[str, set[Path]] = {}
    by_path: dict[Path, list[Row]] = {}
    for row in {key_of(row): row for row in rows}.values():
        one = facts[key_of(row)]
        if one is not None and one.parts is not None:
            of_parts.setdefault(one.parts, set()).add(row.path)
            if one.whole is None:
                by_path.setdefault(row.path, []).append(row)
    left = [path for paths in of_parts.values() if len(paths) > 1 for path in sorted(paths) if path in by_path]
    for path, whole in in_threads(whole_hash, left, workers):
        for row in by_path[path]:
            if (one := facts[key_of(row)]) is not None:
                facts[key_of(row)] = found = replace(one, whole=whole)
                record.add(key_of(row), found)


def _own_problems(
    row: Row, facts: FileFacts | None, class_names: list[str] | None, folder: str | None
) -> list[Problem]:
    """What is wrong with a line by itself; folder: the class that its folder is named as, if that is another."""
    found = []
    if facts is None:
        found.append(_problem("missing", row, "no such file"))
    elif row.segment is not None and row.segment.problem is not None:
        found.append(_problem("segment", row, row.segment.problem))
    elif facts.error is not None:
        found.append(_problem("segment" if facts.outside else "unreadable", row, facts.error))
    elif row.num_frames == 0:
        found.append(_problem("damaged", row, "0 frames, says the list"))
    elif facts.frames is not None and facts.declared and facts.frames < _least(row) * facts.declared:
        found.append(_problem("damaged", row, f"{facts.frames} frames of {facts.declared} declared"))
    if row.label < 0 or (class_names is not None and row.label >= len(class_names)):
        known = "labels start at 0" if class_names is None else f"there are {len(class_names)} classes"
        found.append(_problem("mislabelled", row, f"label {row.label} is out of range; {known}"))
    elif class_names is not None and folder is not None:
        other = f"lies in the folder of class {folder!r}"
        found.append(_problem("mislabelled", row, f"{other}, labelled {class_names[row.label]!r}"))
    return found


def _least(row: Row) -> float:
    """Share of the declared frames that must be there: all that a list counts, as training asks for each of them."""
    return _LEAST_SHARE if row.num_frames is None else 1


def _find_copies(rows: Sequence[Row], facts: dict[str, FileFacts | None], by_row: list[list[Problem]]) -> None:
    """Add what is wrong with lines that name the same file, or files of the same content."""
    groups: dict[tuple[str, Segment | None], list[int]] = {}
    for place, row in enumerate(rows):
        one = facts[key_of(row)]
        file = key_of(row) if one is None or one.whole is None else one.whole
        groups.setdefault((file, row.segment), []).append(place)
    for places in groups.values():
        first = rows[places[0]]
        labels = sorted({rows[place].label for place in places})
        for place in places if len(places) > 1 else ():
            row = rows[place]
            if len(labels) > 1:
                message = f"has the labels {', '.join(map(str, labels))} on different lines, first at {first.where}"
                by_row[place].append(_problem("mislabelled", row, message))
            if place != places[0]:
                same = (
                    "the same path" + ("" if row.segment is None else " and part")
                    if key_of(row) == key_of(first)
                    else f"the same content as {first.path}"
                )
                by_row[place].append(_problem("duplicate", row, f"{same}, at {first.where}"))


def _problem(kind: str, row: Row, message: str) -> Problem:
    segment = None if row.segment is None else row.segment.tag
    return Problem(kind, str(row.path), row.label, row.where, message, segment)


def _writable(row: Row, parsed: Parsed) -> bool:
    """Whether a list may hold the line at all: one without a class cannot be kept."""
    return row.label >= 0 and (parsed.class_names is None or row.label < len(parsed.class_names))


def _write_clean(rows: Sequence[Row], parsed: Parsed, output: Path) -> None:
    """Write the clean list and the class names, and read them again."""
    output.mkdir(parents=True, exist_ok=True)
    home, videos = output.resolve(), []
    rows = list({key_of(row): row for row in rows}.values())
    for row in rows:
        path = os.path.abspath(row.path)
        # Relative where the videos and the list are moved together.
        if os.path.commonpath([path, home.parent]) == str(home.parent):
            path = os.path.relpath(path, home)
        videos.append((path, row.num_frames, row.segment, row.label))
    if parsed.class_names is None:
        (output / CLASSES).unlink(missing_ok=True)
    else:
        write_text(class_table(parsed.class_names), output / CLASSES)
    with replacing(output / CLEAN) as temporary:
        temporary.write_bytes(list_text(videos).encode("utf-8", "surrogateescape"))
        _read_again(temporary, rows, parsed, output)


def _read_again(written: Path, rows: Sequence[Row], parsed: Parsed, output: Path) -> None:
    names = None if parsed.class_names is None else output / CLASSES
    try:
        found = load_annotations(written, root=output.resolve(), class_names=names, allow_mismatched_folders=True)
        items = [(os.path.abspath(item.path), item.label, item.num_frames, item.segment) for item in found.items]
    except InputError as error:
        raise InputError(f"the clean list cannot be read again: rename the video ({error})") from None
    wanted = [(os.path.abspath(row.path), row.label, row.num_frames, row.segment) for row in rows]
    if items != wanted:
        strange = next((row for row, item in zip(wanted, items, strict=False) if row != item), wanted[-1])
        raise InputError(f"{strange[0]!r}: cannot be put into a clean list; rename it")
    if names is not None and found.class_names != parsed.class_names:
        pairs = zip(parsed.class_names or [], found.class_names or [], strict=False)
        changed = next((name for name, again in pairs if name != again), "")
        raise InputError(f"{output / CLASSES}: the class name {changed!r} cannot be put into a class file; change it")
