"""The package as its users meet it: a light import, the public names, the README's example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import m2clip

ROOT = Path(__file__).parent.parent


def test_import_is_light():
    code = (
        "import sys, m2clip, m2clip.kernels, m2clip.methods;"
        "heavy = 'open_clip torchvision matplotlib av decord tensorboard yaml'.split();"
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


@pytest.mark.parametrize("package", [m2clip, m2clip.kernels], ids=lambda package: package.__name__)
def test_dir_shows_the_public_names(package: ModuleType) -> None:
    assert dir(package) == sorted(package.__all__)


def test_version_is_that_of_the_distribution():
    assert m2clip.__version__ == version("m2clip")


def printed(code: str, folder: Path = ROOT) -> str:
    """What a program prints that runs in this folder, which is first on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_kernels_is_no_top_level_package(tmp_path: Path) -> None:
    assert (
        printed("import importlib.util, m2clip.kernels; print(importlib.util.find_spec('kernels'))", tmp_path) == "None"
    )


# In a checkout the folder kernels/ is on the path, and transformers imports what it finds under that name.
ADAPTER = "import m2clip; m2clip.TEDAdapter(32, 16, 2)"
CLIP = "from transformers import CLIPVisionModel; from transformers.utils import is_kernels_available"


@pytest.mark.parametrize("lines", [(ADAPTER, CLIP), (CLIP, ADAPTER)], ids=["m2clip first", "transformers first"])
def test_transformers_works_in_a_checkout(lines: tuple[str, str]) -> None:
    pytest.importorskip("transformers")
    assert printed("; ".join([*lines, "print(is_kernels_available())"])) == "False"


def test_alone_the_folder_kernels_is_an_empty_namespace() -> None:
    code = (
        "import kernels, sys\n"
        "print('torch' in sys.modules, *kernels.__path__)\n"
        "try: from kernels import ted_adapter\n"
        "except ImportError as problem: print(problem.name)"
    )
    assert printed(code).split() == ["False", "kernels"]


@pytest.mark.parametrize("place", [0, 1], ids=["before", "behind"])
def test_another_package_kernels_is_found_in_a_checkout(tmp_path: Path, place: int) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("from . import layer\n")
    (tmp_path / "kernels" / "layer.py").write_text("mode = 'other'\n")
    code = (
        f"import sys; sys.path.insert({place}, {str(tmp_path)!r})\n"
        "import kernels; print(kernels.layer.mode, kernels.__file__)\n"
        "import m2clip.kernels; print(m2clip.kernels.ted_adapter.__name__, m2clip.kernels is not kernels)\n"
        "del sys.modules['kernels'], sys.modules['kernels.layer']\n"
        "from kernels.layer import mode; print(mode)"
    )
    expected = f"other {tmp_path}/kernels/__init__.py\nted_adapter True\nother"
    assert printed(code) == expected


def test_two_checkouts_step_aside_together(tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    (second / "kernels").mkdir(parents=True)
    shutil.copy(ROOT / "kernels" / "__init__.py", second / "kernels")
    (third / "kernels").mkdir(parents=True)
    (third / "kernels" / "__init__.py").touch()
    entries = [str(second), str(ROOT), str(third)]
    code = f"import sys; sys.path[1:1] = {entries!r}; import kernels; print(kernels.__file__)"
    assert printed(code) == f"{third}/kernels/__init__.py"


def test_the_adapter_example_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    scope: dict = {}
    exec(blocks[0], scope)
    assert scope["tokens"].shape == (16, 197, 768) and scope["y"].shape == (16, 197, 768)
    pytest.importorskip("timm")
    exec(blocks[1], scope)
    assert scope["features"].shape == (2, 1000)


def test_type_checkers_see_the_package_and_the_kernels(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n")
    (tmp_path / "user.py").write_text(
        "import m2clip, m2clip.kernels\nreveal_type((m2clip.create_model, m2clip.kernels.ted_adapter))\n"
    )
    words = [sys.executable, "-m", "mypy", "user.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ".VideoModel" in done.stdout and ".TEDWeights" in done.stdout
