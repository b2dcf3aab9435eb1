"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` adds ThreadSanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "sanitize.py"


@pytest.mark.slow
def test_kernels_keep_to_their_memory() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "address"], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong" in done.stdout
