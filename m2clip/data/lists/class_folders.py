"""Folders of videos: one walker for data sets of class folders and for videos without labels.

A video is a file with a suffix of `m2clip.data.lists.suffixes`, or a folder with the pictures of its frames. Links are
followed. What is left out is counted and told in one line (`m2clip.errors.Notice`).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2clip.data.lists.class_names import natural_key
from m2clip.data.lists.formats import ClassLookup
from m2clip.data.lists.label_sets import match_key
from m2clip.data.lists.rows import Parsed, Row, Source
from m2clip.data.lists.suffixes import VIDEO_SUFFIXES, is_animation, is_litter
from m2clip.data.video.readers import IMAGE_SUFFIXES
from m2clip.errors import InputError, Notice

_HIDDEN, _LINKED = "hidden or system files", "folders linked again"
_COVERS, _INNER = "pictures", "folders of pictures within a folder of frames"
_LOOSE, _NO_CLASS = "videos outside of class folders", "folders of no class"
_SPLIT = re.compile(
    r"(?:train|training|val|valid|validation|test|testing|dev|eval)(?:[_-]?\d+\w*)?|(?:fold|split)[ _-]?\d+",
    re.IGNORECASE,
)
_PICTURES_OR_VIDEOS = (".webp", ".avif")
_NAMED = 3


@dataclass
class LeftOut:
    """What a folder holds that is not taken for a video.

    Attributes:
        folder: the folder.
        counts: how many of each kind.
        classes: class folders without a video.
    """

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    classes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The kinds with their numbers, the most frequent ones by name."""
        kinds = self.counts.most_common()
        shown = [f"{kind} ({count})" for kind, count in kinds[: 2 * _NAMED]]
        rest = sum(count for _, count in kinds[2 * _NAMED :])
        return ", ".join(shown + [f"others ({rest})"] * bool(rest)) or "nothing"

    def tell(self) -> None:
        """Warn with a `Notice` where there is something to say."""
        parts = [f"left out {self.describe()}"] if self.counts else []
        parts += [f"classes without a video: {_some(self.classes)}"] if self.classes else []
        if parts:
            warnings.warn(Notice(f"{self.folder}: {'; '.join(parts)}", left_out=self.to_dict()), stacklevel=2)

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "folder": str(self.folder),
            "counts": dict(self.counts.most_common()),
            "classes_without_videos": self.classes,
        }


@dataclass
class _Listing:
    """What lies directly in a folder: video files, the number of pictures, folders."""

    files: list[Path] = field(default_factory=list)
    pictures: int = 0
    folders: list[Path] = field(default_factory=list)


def videos_below(top: Path, left_out: LeftOut, within_class: bool = False) -> list[Path]:
    """All videos below a folder, in the order of their paths.

    Args:
        top: the folder. With pictures but nothing else in it, it is itself one video.
        left_out: is added to.
        within_class: whether it is a class folder, which is never itself a video.

    Raises:
        InputError: a folder that cannot be read, or a name that is not UTF-8.
    """
    listings = _listings(top, left_out)
    films = set()  # folders with a video file somewhere below
    for folder, listing in reversed(listings.items()):
        if listing.files or any(below in films for below in listing.folders):
            films.add(folder)
    found: list[Path] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        listing = listings[folder]
        inner = [below for below in listing.folders if below in listings]
        pictured = [below for below in inner if listings[below].pictures]
        if listing.pictures and folder not in films and not (folder == top and (within_class or pictured)):
            found.append(folder)
            left_out.counts[_INNER] += len(pictured)
            continue
        left_out.counts[_COVERS] += listing.pictures
        found += listing.files
        waiting += inner
    left_out.counts = +left_out.counts
    for path in found:
        check_name(path)
    # As paths are ordered, part by part, in a fraction of the time.
    return sorted(found, key=lambda path: str(path).replace(os.sep, "\0"))


def parse_folder(source: Source) -> Parsed:
    """One sub-folder of videos per class; split = a folder above.

    Class ids are in natural order of the names ("class2" before "class10") unless names are given. A class folder
    without videos keeps its class.

    Raises:
        InputError: no class folders or no videos in them, folders that are splits, single videos or not yet the class
            folders, classes that differ only in case or spaces or are not among the given ones, names that are not
            UTF-8, or a folder that cannot be read.
    """
    top = source.path / source.split if source.split else source.path
    if not is_folder(top):
        raise InputError(f"{top}: no such folder")
    left_out = LeftOut(top)
    listing = _list(top, left_out.counts)
    folders = sorted(listing.folders, key=lambda folder: natural_key(folder.name))
    left_out.counts += Counter({_LOOSE: len(listing.files), _COVERS: listing.pictures})
    if not folders:
        raise InputError(
            f"{top}: expected one sub-folder of videos per class ({top.name}/jump/v1.mp4), found "
            f"{left_out.describe()}; m2clip predict and m2clip label take videos without classes"
        )
    if not source.class_names:
        _check_alike(top, folders)
    above = _above(top)
    videos = {}
    for folder in folders:
        check_name(folder)
        if _identity(folder) in above:
            left_out.counts[_LINKED] += 1
        else:
            videos[folder] = videos_below(folder, left_out, within_class=True)
    names = source.class_names or [folder.name.replace("_", " ") for folder in videos]
    known = {match_key(name) for name in source.class_names or ()}
    _check_levels(top, videos, known, left_out)
    lookup = ClassLookup(names)
    rows = []
    for folder, of_class in videos.items():
        if not of_class and known and match_key(folder.name) not in known:
            left_out.counts[_NO_CLASS] += 1
            continue
        label = lookup.label(folder.name, str(folder))
        rows += [Row(str(video), video, label) for video in of_class]
        if not of_class:
            left_out.classes.append(names[label])
    left_out.counts = +left_out.counts
    if not rows:
        raise InputError(f"{top}: no videos in its {len(folders)} class folders, found {left_out.describe()}")
    left_out.tell()
    return Parsed(rows, names, left_out.to_dict() if left_out.counts or left_out.classes else {})


def check_there(path: Path, what: str) -> None:
    """InputError where there is no such file or folder, or where nobody may look."""
    try:
        if stat.S_ISDIR(path.stat().st_mode) and not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise InputError(f"{str(path)[:200]!r}: cannot be read ({reason})") from None


def is_folder(path: Path) -> bool:
    """Whether a path is that of a folder.

    Raises:
        InputError: nobody may look, or the name is too long.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def check_name(path: Path) -> None:
    """InputError where a path is not UTF-8: neither a list nor JSON can hold it."""
    for part in (path, *path.parents) if not _is_utf8(str(path)) else ():
        if not _is_utf8(part.name):
            where = str(part.parent) if _is_utf8(str(part.parent)) else repr(os.fsencode(part.parent))
            raise InputError(f"{where}: file name {os.fsencode(part.name)!r} is not UTF-8; rename it")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_alike(top: Path, folders: Sequence[Path]) -> None:
    seen: dict[str, str] = {}
    for folder in folders:
        other = seen.setdefault(match_key(folder.name), folder.name)
        if other != folder.name:
            raise InputError(
                f"{top}: the class folders {other!r} and {folder.name!r} differ only in case, spaces, underscores or "
                "hyphens; join them, or rename one"
            )


def _check_levels(top: Path, videos: dict[Path, list[Path]], known: set[str], left_out: LeftOut) -> None:
    """InputError where the sub-folders are no classes but splits, single videos, or the one folder of the data set."""
    full = [folder for folder in videos if videos[folder] and match_key(folder.name) not in known]
    splits = [folder.name for folder in full if _SPLIT.fullmatch(folder.name)]
    trained = len(splits) > 1 and any("train" in name.lower() for name in splits)
    if splits and (len(splits) == len(full) or trained or _holds_classes(top / splits[0], videos)):
        raise InputError(
            f"{top}: its folders {_some(splits)} are named as splits, not as classes; give {top / splits[0]}, or "
            f"--split {splits[0]} (data.train_split of a configuration)"
        )
    if len(full) == 1 == sum(map(bool, videos.values())):
        inner = sorted({video.relative_to(full[0]).parts[0] for video in videos[full[0]] if video.parent != full[0]})
        if len(inner) > 1 and not any(video.parent == full[0] for video in videos[full[0]]):
            raise InputError(
                f"{top}: holds videos in one folder only, {full[0].name}, and there in the folders {_some(inner)}; if "
                f"these are the classes, give {full[0]}, and else the class names"
            )
    if not any(videos.values()) and left_out.counts[_COVERS]:
        raise InputError(
            f"{top}: its folders ({_some([folder.name for folder in videos])}) hold pictures themselves, as if each "
            f"were one video without a class; expected class/video/0001.jpg"
        )


def _holds_classes(split: Path, videos: dict[Path, list[Path]]) -> bool:
    """Whether the folders in one that is named as a split have the names of those beside it."""
    inner = {match_key(video.relative_to(split).parts[0]) for video in videos[split] if video.parent != split}
    return bool(inner & {match_key(folder.name) for folder in videos})


def _listings(top: Path, left_out: LeftOut) -> dict[Path, _Listing]:
    """What lies in a folder and all below it, each folder after the one that it is in, none twice."""
    listings: dict[Path, _Listing] = {}
    seen = _above(top) - {_identity(top)}
    # Links after all else, so that a folder is found where it is and not where a link to it is.
    waiting, links = [top], list[Path]()
    while waiting or links:
        folder = (waiting or links).pop()
        if (identity := _identity(folder)) in seen:
            left_out.counts[_LINKED] += 1
            continue
        seen.add(identity)
        listings[folder] = _list(folder, left_out.counts)
        for below in listings[folder].folders:
            (links if below.is_symlink() else waiting).append(below)
    return listings


def _list(folder: Path, counts: Counter[str]) -> _Listing:
    found = _Listing()
    animated: dict[str, bool] = {}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if is_litter(entry.name):
            counts[_HIDDEN] += 1
        elif _leads_to(entry.is_dir):
            found.folders.append(folder / entry.name)
        elif suffix in VIDEO_SUFFIXES or (suffix in _PICTURES_OR_VIDEOS and _animated(entry, animated)):
            found.files.append(folder / entry.name)
        elif suffix in IMAGE_SUFFIXES:
            found.pictures += 1
        else:
            counts[suffix or "files without suffix"] += 1
    return found


def _leads_to(is_kind: Callable[[], bool]) -> bool:
    try:
        return is_kind()
    except OSError:  # a link to itself
        return False


def _animated(entry: os.DirEntry[str], known: dict[str, bool]) -> bool:
    """Whether pictures of a suffix are videos; the first speaks for all in its folder, which may have thousands."""
    suffix = Path(entry.name).suffix.lower()
    if suffix not in known:
        known[suffix] = _leads_to(entry.is_file) and is_animation(Path(entry.path))
    return known[suffix]


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    return status.st_dev, status.st_ino


def _above(folder: Path) -> set[tuple[int, int]]:
    """Identities of a folder and of all that it is in, by its own path and where it really is."""
    return {_identity(path) for real in (folder.absolute(), folder.resolve()) for path in (real, *real.parents)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
