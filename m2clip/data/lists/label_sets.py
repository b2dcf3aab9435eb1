"""Class names: the published label lists by short name, and the user's own files."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from m2clip.data.lists.class_files import class_table, numbered_classes, parse_class_file
from m2clip.data.lists.class_names import match_key, prompt_name
from m2clip.errors import InputError

__all__ = ["LABEL_SETS", "class_table", "load_class_names", "match_key", "numbered_class_names", "prompt_name"]

# Short name -> number of classes. The files lie in labels/, `-` written as `_`.
LABEL_SETS: dict[str, int] = {
    "k400": 400,
    "k400-base": 200,
    "k400-novel": 200,
    "k600": 600,
    "k600-zs1": 160,
    "k600-zs2": 160,
    "k600-zs3": 160,
    "ssv2": 174,
    "ssv2-base": 87,
    "ssv2-novel": 87,
    "ucf101": 101,
    "ucf101-base": 51,
    "ucf101-novel": 50,
    "hmdb51": 51,
    "hmdb51-base": 26,
    "hmdb51-novel": 25,
}


def load_class_names(name_or_path: str | Path) -> list[str]:
    """Class names in the order of their labels, from a built-in list or from a file.

    Args:
        name_or_path: a key of `LABEL_SETS` ("k400", "ucf101-base", ...) or the path of a class file: a table of
            `id,name` or `name,id` rows (ids from 0 or 1, a header line, `;` or tabs in place of commas), one name per
            line, UCF101's classInd.txt (`id name`), or a list or a map of names in JSON or YAML (SSv2's labels.json is
            {template: "id"}). Lines that begin with # are comments.

    Raises:
        InputError: unknown name, unreadable file, ids that are not consecutive, an empty or repeated name, or a file
            that can be read in two ways.
    """
    return numbered_class_names(name_or_path)[1]


def numbered_class_names(name_or_path: str | Path) -> tuple[int, list[str]]:
    """As `load_class_names`, with the number that the file gives its first class, 0 or 1."""
    key = str(name_or_path).lower()
    if key in LABEL_SETS:
        names = parse_class_file(Path(__file__).parent.parent / "labels" / f"{key.replace('-', '_')}.csv")
        if len(names) != LABEL_SETS[key]:
            raise InputError(
                f"{key}: the packaged list has {len(names)} names, not {LABEL_SETS[key]}; reinstall m2clip"
            )
        return 0, names
    if not os.path.lexists(name_or_path):
        close = difflib.get_close_matches(key, LABEL_SETS, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"built-in lists: {', '.join(LABEL_SETS)}"
        raise InputError(f"{name_or_path}: neither a built-in label list nor a file; {hint}")
    return numbered_classes(Path(name_or_path))
