"""Class names as words: for prompts, and for matching names of different sources."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence, Set

from m2clip.errors import InputError

_NO_MATTER = re.compile(r"[\s_\[\]()'\"]+|(?<=[^\W\d_])-(?=[^\W\d_])")
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def prompt_name(name: str) -> str:
    """A class name as words for a prompt.

    Underscores become spaces, brackets around placeholders are dropped, and a name without spaces is split where its
    capitals begin new words ("ApplyEyeMakeup" -> "Apply Eye Makeup"). Case is kept: CLIP's tokenizer lowers it anyway.
    """
    words = name.replace("_", " ").replace("[", "").replace("]", "").strip()
    if not re.search(r"\s", words):
        words = _CAMEL_BOUNDARY.sub(" ", words)
    return " ".join(words.split())


def name_list(names: Sequence[str]) -> list[str]:
    """Class names as a list.

    Raises:
        InputError: one text in place of a list of texts, something without an order, or a name that is no text.
    """
    if isinstance(names, (str, bytes, Mapping, Set)) or not hasattr(names, "__iter__"):
        raise InputError(
            f"class names are a list of texts, not {str(names)[:60]!r} ({type(names).__name__}); "
            "m2clip.data.lists.label_sets.load_class_names gives those of a label set or a class file"
        )
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise InputError(f"class names are texts, not {str(name)[:60]!r} ({type(name).__name__})")
    return found


def match_key(name: str) -> str:
    """A class name without case, spaces, underscores, brackets, quotes and hyphens between letters, to match names.

    Accents count, however they are encoded: composed (as most systems write them) or decomposed (as macOS does).
    """
    return composed(_NO_MATTER.sub("", name).lower())


def composed(text: str) -> str:
    """A text with its accents and letters composed (Unicode's NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sorts names by the numbers in them, so that "class10" comes after "class2"; names without numbers as ever."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)], name
