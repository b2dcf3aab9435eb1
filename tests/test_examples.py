"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_towers_of_three_libraries_are_adapted() -> None:
    script = ROOT / "examples" / "drop_in.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    for library in ("timm", "torchvision", "transformers"):
        assert f"{library}: features (16, 96)" in done.stdout or f"{library}: left out" in done.stdout
