"""Which annotation format a file or folder has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m2clip.data.lists.class_files import parse_class_file
from m2clip.data.lists.class_names import match_key
from m2clip.data.lists.formats import kinetics_header
from m2clip.data.lists.plain import looks_counted
from m2clip.data.lists.segments import is_database, is_epic
from m2clip.data.lists.text_files import numbered_lines, parse_json, read_text
from m2clip.data.packs.frames import is_pack
from m2clip.errors import InputError


def detect_format(path: Path, class_names: Sequence[str] | None = None) -> str:
    """The annotation format of a file or folder, from its content, and from its name where the content leaves a choice.

    Args:
        path: of the list.
        class_names: if they are known.

    Raises:
        InputError: not a text file, JSON that is no list of videos, or a list that has labels of two kinds.
    """
    if is_pack(path):
        return "shards"
    if path.is_dir():
        if (path / "classInd.txt").is_file():
            return "ucf101"
        return "hmdb51" if next(path.glob("*_test_split[123].txt"), None) else "folder"
    text = read_text(path)
    if (found := _json_format(text, path)) is not None:
        return found
    first = next((line for _, line in numbered_lines(text)), "")
    if kinetics_header(first):
        return "kinetics"
    if is_epic(first):
        raise InputError(
            f"{path}: EPIC-Kitchens labels verbs and nouns: choose the format epic_verbs or epic_nouns (--format, "
            "data.format)"
        )
    if re.match(r"(train|val|test)\d+/", first) and not re.search(r"[\s,;]\d+$", first):
        return "episodes"
    if re.fullmatch(r"(train|test)list\d+\.txt", path.name) and _is_ucf101(path, text, class_names):
        return "ucf101"
    if re.fullmatch(r".+_test_split[123]\.txt", path.name) and re.fullmatch(r"[^/]+\s[012]", first):
        return "hmdb51"
    return "frames" if looks_counted(text, path) else "list"


def _json_format(text: str, path: Path) -> str | None:
    """The format of a JSON file, None where it is none: the name of a video may begin with a bracket as well."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return None
    by_line = start == "{"
    try:
        value = parse_json(next(numbered_lines(text))[1] if by_line else text, path)
    except InputError:
        by_line = False
        try:
            value = parse_json(text, path)
        except InputError:
            if path.suffix.lower() in (".json", ".jsonl"):
                raise
            return None
    entries = (
        list(value[:1]) if isinstance(value, list) else list(value.values())[:1] if isinstance(value, dict) else []
    )
    entry = entries[0] if entries and isinstance(entries[0], dict) else {}
    if isinstance(value, list):
        return "ssv2" if "template" in entry or "placeholders" in entry or set(entry) == {"id"} else "list"
    if is_database(value):
        return "activitynet"
    if "annotations" in entry or {"subset", "url"} <= set(entry):
        return "kinetics"
    if isinstance(value, dict) and not by_line:
        raise InputError(
            f'{path}: JSON of no known list; expected {{"path": "v.mp4", "label": "jump"}} in each line, or a list'
        )
    return "list"


def _is_ucf101(path: Path, text: str, class_names: Sequence[str] | None) -> bool:
    """Whether a file that is named as UCF101's is such: class folders, and class numbers from 1, or none."""
    found = [re.fullmatch(r"([^/]+)/[^/]*?\.\w+(?:\s+(\d+))?", line) for _, line in numbered_lines(text)]
    if not found or not found[0] or any(match and match[2] == "0" for match in found):
        return False
    if found[0][2] is None:
        return True
    index = path.parent / "classInd.txt"
    names = parse_class_file(index) if index.is_file() else class_names
    if names is None:
        return all(match and "/v_" in match[0] for match in found)
    known = {match_key(name) for name in names}
    return any(match and match_key(match[1]) in known for match in found)
