"""What can be found out about one file of a data set, and a record of it that outlives a killed run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from m2clip.data.lists.rows import Row
from m2clip.data.sampling import uniform_indices
from m2clip.data.video.isolated import DecoderLimits, open_isolated
from m2clip.data.video.readers import IMAGE_SUFFIXES, SegmentError, Video, VideoError, check_reader, of_frames
from m2clip.errors import InputError
from m2clip.files.disk import file_digest, open_regular, parse_json, read_bytes, seal, unseal, writing

DECODE = ("none", "count", "sampled", "full")
_LINE = b'{"key": '  # what each line of a record begins with
_PART = 1 << 16
_MOST_BYTES = 1 << 40  # of a file that is compared as a whole: files with holes can tell any size
# Frames that are decoded at a time when all are.
_CHUNK_BYTES = 1 << 26

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Depth:
    """How closely files are looked at.

    Args:
        decode: "none" (only what the disk says), "count" (open and count), "sampled" (also decode the frames of a
            clip) or "full" (decode every frame).
        num_frames: frames of that clip, one from the middle of each of as many segments.
        reader: video reader, or "auto".
        limits: what one video may cost.

    Raises:
        InputError: a choice that does not exist, or fewer than one frame.
    """

    decode: str = "sampled"
    num_frames: int = 8
    reader: str = "auto"
    limits: DecoderLimits = DecoderLimits()

    def __post_init__(self) -> None:
        if self.decode not in DECODE:
            raise InputError(f"decode must be one of {', '.join(DECODE)}, not {self.decode!r}")
        check_reader(self.reader)
        if self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, not {self.num_frames}")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was found out about a file, or about a folder of images.

    Attributes:
        stamp: size and time of the last change, by which a changed file is known.
        parts: hash of the size and of the first, the middle and the last 64 KB; None where they cannot be read.
        whole: hash of the content, once it was needed.
        frames, declared: how many frames there are, and how many the header announces; None where nobody looked.
        error: why the video cannot be read.
        outside: whether that is because the video has no such part.
    """

    stamp: list[int]
    parts: str | None
    whole: str | None = None
    frames: int | None = None
    declared: int | None = None
    error: str | None = None
    outside: bool = False


class Record:
    """The facts about files, a line of JSON each, added as they are found; a line that was cut short is forgotten.

    Args:
        path: the file of the record; it need not exist.
        depth: how closely files are looked at. What was found out otherwise is not taken over.
    """

    def __init__(self, path: Path, depth: Depth) -> None:
        self._depth = json.dumps(asdict(depth), sort_keys=True)
        self._facts: dict[str, FileFacts] = {}
        cut = False
        if path.exists():
            try:
                lines = read_bytes(path).splitlines(keepends=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); give another --output") from None
            for line in lines:
                cut = not line.endswith(b"\n")
                self._take(line)
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)
        if cut:
            self._append(b"\n")

    def _take(self, line: bytes) -> None:
        try:
            entry = unseal(parse_json(line), required=True)
            if entry["depth"] == self._depth:
                self._facts[entry["key"]] = FileFacts(**entry["facts"])
        except (ValueError, KeyError, TypeError):
            return

    def known(self, key: str, stamp: list[int]) -> FileFacts | None:
        """The facts about a file, None where there are none or the file has changed since."""
        facts = self._facts.get(key)
        return facts if facts is not None and facts.stamp == stamp else None

    def add(self, key: str, facts: FileFacts) -> None:
        """Keep facts, on the disk as well."""
        self._facts[key] = facts
        entry = {"key": key, "depth": self._depth, "facts": asdict(facts)}
        self._append(json.dumps(seal(entry)).encode() + b"\n")

    def _append(self, data: bytes) -> None:
        with writing(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_record(path: Path) -> bool:
    """Whether a file is a `Record`, which may be empty, cut short in its first line, or damaged in some."""
    try:
        data = read_bytes(path)
    except OSError:
        return False
    return _LINE.startswith(data[: len(_LINE)]) or b"\n" + _LINE in data


def key_of(row: Row) -> str:
    """What tells a video apart from all others."""
    frames = f"|{row.num_frames}" if row.num_frames is not None else ""
    return os.path.abspath(row.path) + frames + (f"|{row.segment}" if row.segment is not None else "")


def stamp_of(row: Row) -> list[int] | None:
    """Size and time of the last change in nanoseconds, of a folder over its images; None where it is missing."""
    try:
        if row.path.is_dir():
            found = [(image.stat().st_size, image.stat().st_mtime_ns) for image in _images(row.path)]
            return [sum(size for size, _ in found), max((time for _, time in found), default=0), len(found)]
        status = row.path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def look_at(row: Row, stamp: list[int], depth: Depth) -> FileFacts:
    """Everything about one file that needs no other file."""
    facts = FileFacts(stamp, _hash(row.path, whole=False))
    if depth.decode == "none" or (row.segment is not None and row.segment.problem is not None):
        return facts
    reader = depth.reader if row.num_frames is None else of_frames(depth.reader)
    try:
        with open_isolated(row.path, reader, segment=row.segment, limits=depth.limits) as video:
            declared = video.declared if row.num_frames is None else row.num_frames
            facts = replace(facts, frames=video.num_frames, declared=declared)
            _decode(video, depth)
    except VideoError as error:
        facts = replace(facts, error=str(error), outside=isinstance(error, SegmentError))
    return facts


def whole_hash(path: Path) -> str | None:
    """A hash of all the content of a file or of a folder of images; None where it cannot be read."""
    return _hash(path, whole=True)


def in_threads(function: Callable[[Given], Made], given: Iterable[Given], workers: int) -> Iterator[tuple[Given, Made]]:
    """Each argument with its result as they get done, without taking many arguments in advance.

    The work is done by the children that decode, one for each thread, and while files are read and hashed.
    """
    waiting: dict[Future[Made], Given] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for one in given:
                waiting[pool.submit(function, one)] = one
                if len(waiting) >= 4 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            for future in waiting:
                future.cancel()


def _finished(waiting: dict[Future[Any], Given]) -> Iterator[tuple[Given, Any]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def _decode(video: Video, depth: Depth) -> None:
    if depth.decode == "sampled":
        video.read_array(sorted(set(uniform_indices(video.num_frames, depth.num_frames))))
    elif depth.decode == "full":
        size = video.read_array([0]).nbytes
        chunk = max(_CHUNK_BYTES // size, 1)
        for start in range(0, video.num_frames, chunk):
            video.read_array(range(start, min(start + chunk, video.num_frames)))


def _images(folder: Path) -> list[os.DirEntry[str]]:
    found = (entry for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES)
    return sorted(found, key=lambda entry: entry.name)


def _hash(path: Path, whole: bool) -> str | None:
    digest = hashlib.sha256()
    try:
        files = [Path(image.path) for image in _images(path)] if path.is_dir() else [path]
        if path.is_dir() and not whole:
            digest.update(repr([(file.name, file.stat().st_size) for file in files]).encode())
            files = [files[place] for place in sorted({0, len(files) // 2, len(files) - 1})] if files else []
        for file in files:
            _add(digest, file, whole)
    except OSError:
        return None
    return digest.hexdigest()


def _add(digest: Any, path: Path, whole: bool) -> None:
    if whole:
        digest.update(file_digest(path, most=_MOST_BYTES).encode())
        return
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"%d:" % size)
        for start in sorted({0, max(size // 2 - _PART // 2, 0), max(size - _PART, 0)}):
            file.seek(start)
            digest.update(file.read(_PART))
