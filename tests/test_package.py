"""The package as its users meet it: a light import, the public names, the README's example."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import m2clip

ROOT = Path(__file__).parent.parent


def test_import_is_light():
    code = (
        "import sys, m2clip, m2clip.kernels, m2clip.methods;"
        "heavy = 'open_clip torchvision matplotlib av decord torchmetrics tensorboard jsonargparse'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bare_import_does_not_even_load_torch():
    code = "import sys, m2clip; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_every_public_name_is_there_and_others_are_not():
    for name in m2clip.__all__:
        assert getattr(m2clip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TEDadapter'"):
        m2clip.TEDadapter  # noqa: B018


def test_version_is_that_of_the_distribution():
    assert m2clip.__version__ == version("m2clip")


def test_kernels_is_no_top_level_package(tmp_path):
    code = "import importlib.util, m2clip.kernels; print(importlib.util.find_spec('kernels'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "None"


def test_the_adapter_example_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    scope: dict = {}
    exec(blocks[0], scope)
    assert scope["tokens"].shape == (16, 197, 768) and scope["y"].shape == (16, 197, 768)
