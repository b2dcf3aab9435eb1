"""Prints the oldest supported versions of what m2clip needs, as constraints for pip: pyproject.toml's lower bounds.

python tools/oldest.py > constraints.txt
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lower_bounds() -> dict[str, str]:
    """Package -> lowest version, of the dependencies that every installation has."""
    (block,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", PROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    bounds: dict[str, str] = {}
    for requirement in re.findall(r'"([^"]+)"', block):
        found = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
        if found is None:
            sys.exit(f"pyproject.toml: {requirement!r} has no lower bound, so that its oldest version is unknown")
        bounds[found[1]] = found[2]
    return bounds


if __name__ == "__main__":
    for name, version in lower_bounds().items():
        print(f"{name}=={version}")
