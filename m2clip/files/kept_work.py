"""Work that is kept while it is done: which work a folder is of, and what was finished in it.

A folder is bound to one work by a manifest, a sealed record of all that decides the result. A call that finds another
one's manifest refuses the folder; a call that finds its own resumes with what has no intact file yet.

Single files of results carry a digest, or a picture the name of this program; of tables the digests are kept in a
hidden file beside them. So a call tells an earlier result, which it may replace, from what a user has put there or
changed.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from m2clip.errors import InputError
from m2clip.files.disk import file_digest, open_regular, read_json, seal, unseal, write_json, write_text

MANIFEST = "manifest.json"
TABLES = ".tables"
PROGRAM = b"Software\0m2clip"  # of a picture, as PNG says it


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: keys are texts, tuples are lists."""
    return json.loads(json.dumps(value))


def begin(folder: Path, facts: dict[str, Any], own: Collection[str] = ()) -> None:
    """Write the manifest of an unfinished work, unless the folder has one; of several processes one writes it.

    Args:
        folder: is created.
        facts: what the work is; the name "complete" is taken.
        own: names of other files and folders of the work, which may be there.

    Raises:
        InputError: the folder holds other files that are not hidden, or cannot be written to.
    """
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if MANIFEST in names:
        return
    # A process that was killed left a hidden part of a manifest.
    others = [name for name in names if name not in own and not name.startswith(".")]
    if others:
        raise InputError(f"{folder}: holds other files, such as {others[0]}; give a new folder")
    write_json(seal({**facts, "complete": False}), folder / MANIFEST, first=True)


def check_same(saved: dict[str, Any], current: dict[str, Any], folder: Path, what: str = "run") -> None:
    """Refuse to resume work whose settings were others.

    Args:
        saved: names and JSON values of the settings that decided what is there.
        current: those of this call.
        folder: of the work, for the message.
        what: the kind of work, for the message.

    Raises:
        InputError: naming every setting that differs, with both values.
    """
    different = [
        f"{name} ({_short(saved.get(name))} there, {_short(current.get(name))} here)"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]
    if different:
        raise InputError(
            f"{folder} holds a {what} with other settings: {'; '.join(different)}; use those, or another output folder"
        )


def read_record(path: Path) -> dict[str, Any]:
    """A sealed record; an empty one where there is none, or where it is damaged."""
    try:
        return unseal(read_json(path), required=True)
    except (OSError, ValueError):
        return {}


def write_result(result: dict[str, Any], path: Path) -> Path:
    """Write a result as JSON that `check_replaceable` knows again; returns the path."""
    return write_json(seal(result), path)


def write_csv(rows: Iterable[Sequence[Any]], path: Path) -> Path:
    """Write rows as csv (RFC 4180, UTF-8) that `check_replaceable` knows again; returns the path."""
    from hashlib import sha256

    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    # A file name that is not UTF-8 has halves of characters in Python.
    content = text.getvalue().encode("utf-8", "backslashreplace").decode()
    known = read_record(path.parent / TABLES)
    # The digest is kept first, beside that of the table which is there: a kill in between leaves one that is known.
    known[path.name] = [*known.get(path.name, [])[-1:], sha256(content.encode()).hexdigest()]
    write_json(seal(known), path.parent / TABLES)
    return write_text(content, path)


def check_replaceable(*paths: Path, option: str = "--output") -> None:
    """Refuse, before the work, to replace a file that is no earlier result, or one that was changed since.

    Args:
        paths: JSON (`write_result`), csv (`write_csv`) and PNG (`m2clip.plots.style.save`) files, or none yet.
        option: how their place is chosen, for the message.

    Raises:
        InputError: naming the first such file.
    """
    for path in paths:
        if os.path.lexists(path) and not _is_result(path):
            raise InputError(
                f"{path} is there already, and not as m2clip has written it: nothing is written over it; move it away, "
                f"or give another {option}"
            )


def _is_result(path: Path) -> bool:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return file_digest(path) in read_record(path.parent / TABLES).get(path.name, [])
        if kind == ".png":
            with open_regular(path) as file:
                return PROGRAM in file.read(1024)
    except OSError:
        return False
    return bool(read_record(path))


def remove_partial_files(folder: Path, deep: bool = False) -> None:
    """Remove what a killed process left of files that it was writing to a folder (`m2clip.files.disk.replacing`).

    Args:
        folder: it need not exist.
        deep: in all folders below it, too.
    """
    for path in folder.glob("**/.*.partial" if deep else ".*.partial"):
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
