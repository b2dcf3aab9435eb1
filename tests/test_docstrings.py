"""Docstrings are in Google style: they parse, and each parameter has a line of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

griffe = pytest.importorskip("griffe")

ROOT = Path(__file__).resolve().parent.parent


@cache
def documented() -> list[Any]:
    """All classes and functions that have a docstring, as griffe reads them without importing anything."""
    package = griffe.load("m2clip", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    kernels = griffe.load("kernels", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)

    def walk(thing: Any) -> Iterator[Any]:
        for member in thing.members.values():
            if member.is_alias or member.path.startswith("m2clip.kernels"):
                continue
            if (member.is_class or member.is_function) and member.docstring is not None:
                yield member
            if not member.is_function:
                yield from walk(member)

    return [*walk(package), *walk(kernels)]


def test_docstrings_parse(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for thing in documented():
            assert thing.docstring.parsed
    assert [record.getMessage() for record in caplog.records] == []


def test_each_parameter_has_a_line_of_its_own() -> None:
    """No parameter or field is described in running text, as "name: ..." or "name, other: ..."."""
    wrong = []
    for thing in documented():
        if thing.name.startswith("_") and thing.name != "__init__":
            continue
        names = {part.name for part in thing.parameters} if thing.is_function else set(thing.members)
        text = "\n".join(part.value for part in thing.docstring.parsed if part.kind.value == "text")
        for name in re.findall(r"(?:^|[.;,] )(?:\w+, )*(\w+): ", text, flags=re.MULTILINE):
            if name in names:
                wrong.append(f"{thing.filepath.relative_to(ROOT)}:{thing.lineno} {thing.name}: {name}")
    assert wrong == []
