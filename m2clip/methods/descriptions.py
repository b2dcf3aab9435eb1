"""Sentences that describe classes: published files, one's own, and the bundled ones of the built-in data sets.

A file is a JSON object with a list of sentences for each class, by the class's name or by its position in the label set
("0", "1", ..., as published files have it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2clip.data.lists.class_names import name_list
from m2clip.errors import InputError
from m2clip.files.disk import read_json, write_json

BUNDLED = ("motion-spatial", "motion-temporal", "mocap-spatial", "mocap-temporal")
_ASSETS = Path(__file__).parent.parent / "assets"


def load_descriptions(source: str | Path, class_names: Sequence[str]) -> list[list[str]]:
    """The sentences of each class, at least one, in the order of the class names.

    Args:
        source: a file, or the name of a bundled one (`BUNDLED`).
        class_names: C names. A file by names may describe other classes as well, which are left out; one by position
            must describe exactly these.

    Raises:
        InputError: an unreadable file or one of another form; classes without a sentence, named.
    """
    class_names = name_list(class_names)
    path = _ASSETS / f"{str(source).replace('-', '_')}.json" if str(source) in BUNDLED else Path(source)
    found = _read(path)
    numbered = bool(found) and all(key.isdecimal() for key in found)
    if numbered and len(found) != len(class_names):
        raise InputError(f"{path} describes {len(found)} classes by position, and the label set has {len(class_names)}")
    keys = [str(i) for i in range(len(class_names))] if numbered else list(class_names)
    missing = [name for key, name in zip(keys, class_names, strict=True) if not found.get(key)]
    if missing:
        raise InputError(
            f"{path} has no sentence for {len(missing)} of {len(class_names)} classes, among them {missing[0]!r}"
        )
    return [found[key] for key in keys]


def write_template(path: Path, class_names: Sequence[str], sentences: int) -> None:
    """Write a file to fill in: `sentences` empty sentences for each class, by name.

    Raises:
        InputError: the file is there already.
    """
    if path.exists():
        raise InputError(f"{path} is there already; choose another name, or check it with m2clip describe --check")
    content = {name: [""] * sentences for name in name_list(class_names)}
    write_json(content, path)


def _read(path: Path) -> dict[str, list[str]]:
    """Non-empty sentences by key; one string stands for a list of one."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: give a description file, or one of {', '.join(BUNDLED)}; "
            "m2clip describe writes one to fill in"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold an object of sentences by class, not a {type(content).__name__}")
    found = {}
    for key, value in content.items():
        sentences = [value] if isinstance(value, str) else value
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError(f"{path}: {key!r} must be a list of sentences")
        found[key] = [sentence.strip() for sentence in sentences if sentence.strip()]
    return found
