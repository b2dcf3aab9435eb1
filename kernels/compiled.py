"""The compiled extensions `_native` and `_cuda`: loading them, or why they are not there."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def load(name: str) -> tuple[Any, str]:
    """An extension by name, and why it is missing: the module and "", or None and one line."""
    try:
        return import_module(f".{name}", __package__), ""
    except ImportError as error:
        return None, why_missing(name, str(error))


def why_missing(name: str, error: str) -> str:
    """Why there is no extension: the note that the installation left, or the error of loading what it built."""
    if find_spec(f".{name}", __package__) is not None:
        return f"it was built but does not load: {error}"
    note = FOLDER / f"{name}_missing.txt"
    if note.exists():
        return note.read_text(encoding="utf-8").strip()
    return "it was never built; install m2clip again, or run `python setup.py build_ext --inplace` in a checkout"
