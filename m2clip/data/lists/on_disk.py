"""Which file or folder a list means, where the name in it is not quite the name on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from m2clip.data.lists.class_names import composed
from m2clip.data.lists.suffixes import VIDEO_SUFFIXES
from m2clip.errors import InputError


def has_video_suffix(name: str) -> bool:
    """Whether a name ends as that of a video file."""
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in VIDEO_SUFFIXES


@dataclass
class _Folder:
    """The names in a folder: as they are, by their composed form, and the videos by their names without suffix."""

    names: set[str] = field(default_factory=set)
    composed: dict[str, str] = field(default_factory=dict)
    stems: dict[str, list[str]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


class Disk:
    """Looks names up on the disk; every folder is read once, and only where a name leaves a question."""

    def __init__(self) -> None:
        self._read: dict[str, _Folder] = {}
        self._meant: dict[str, str] = {}

    def meant(self, path: Path, where: str) -> Path:
        """The path as it is on the disk: accents encoded as there, the suffix of a video that has none, slashes for \\.

        Args:
            path: as a list gives it.
            where: file and line, for messages.

        Returns:
            The path itself where it is there, or nothing like it is.

        Raises:
            InputError: several videos have this name without their suffixes.
        """
        path = self._with_slashes(path)
        whole = str(path)
        name = whole.rpartition("/")[2]
        suffixed = has_video_suffix(name)
        if (suffixed and whole.isascii()) or not path.name or "\0" in whole:
            return path
        folder = self._folder(str(path.parent))
        found = self._entries(folder)
        if name not in found.names:
            key = composed(name)
            videos = [] if suffixed else found.stems.get(key, [])
            if key in found.composed:
                name = found.composed[key]
            elif len(videos) > 1:
                raise InputError(f"{where}: {path} may be {' or '.join(sorted(videos))}; write the suffix")
            elif videos:
                name = videos[0]
        return path if name == path.name and folder == str(path.parent) else Path(folder, name)

    def _with_slashes(self, path: Path) -> Path:
        """A path of Windows with the slashes of other systems, unless a file is called so."""
        return path if "\\" not in str(path) or self.is_there(path) else Path(str(path).replace("\\", "/"))

    def is_folder(self, path: Path) -> bool:
        """Whether a path that `meant` gave is a folder."""
        folder, name = os.path.split(path)
        return name in self._entries(folder or ".").folders

    def is_there(self, path: Path) -> bool:
        """Whether there is a path that `meant` gave."""
        folder, name = os.path.split(path)
        return name in self._entries(folder or ".").names

    def _folder(self, path: str) -> str:
        """A folder's path as it is on the disk."""
        if path.isascii():
            return path
        if path not in self._meant:
            parent, name = os.path.split(path)
            if name and not os.path.isdir(path):
                parent = self._folder(parent)
                name = self._entries(parent).composed.get(composed(name), name)
            self._meant[path] = os.path.join(parent, name)
        return self._meant[path]

    def _entries(self, folder: str) -> _Folder:
        if folder not in self._read:
            self._read[folder] = found = _Folder()
            try:
                with os.scandir(folder or ".") as entries:
                    for entry in entries:
                        _add(found, entry)
            except (OSError, ValueError):
                pass  # what is not there, or may not be looked into, tells nothing
        return self._read[folder]


def _add(found: _Folder, entry: os.DirEntry[str]) -> None:
    name = entry.name
    found.names.add(name)
    found.composed.setdefault(composed(name), name)
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link to itself
        return
    if is_folder:
        found.folders.add(name)
    elif has_video_suffix(name):
        found.stems.setdefault(composed(os.path.splitext(name)[0]), []).append(name)
