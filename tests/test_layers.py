"""Imports run one way: the contracts of pyproject.toml hold, and an import in another direction breaks them."""

from __future__ import annotations

import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp")
pytest.importorskip("importlinter")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its contracts."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "m2clip", folder / "m2clip", ignore=shutil.ignore_patterns("*.so", "__pycache__", "assets"))
    return folder


def broken(folder: Path) -> list[str]:
    """The contracts that a folder's package breaks."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-logo', '--no-cache'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    found = re.findall(r"^(.*) BROKEN", done.stdout, re.MULTILINE)
    assert "Contracts: " in done.stdout and (done.returncode != 0) == bool(found), done.stdout + done.stderr
    return found


def test_the_contracts_hold(checkout: Path) -> None:
    assert broken(checkout) == []


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("towers/loading.py", "from m2clip.methods import create_model", "the house"),
        ("data/sampling.py", "from m2clip.towers import tiny", "the house"),
        ("data/sampling.py", "from m2clip.kernels import dispatch", "data knows nothing of models"),
        ("at_scale/folder.py", "from m2clip.train import trainer", "the house"),
        ("kernels/dispatch.py", "from m2clip.errors import InputError", "the house"),
        ("evaluate/scoring.py", "from m2clip import create_model", "inner code imports modules"),
        ("commands/shared/parsing.py", "from m2clip.commands import eval", "no circles"),
        ("unplaced.py", "pass", "the house"),
    ],
)
def test_a_planted_import_breaks_them(checkout: Path, module: str, line: str, contract: str) -> None:
    path = checkout / "m2clip" / module
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n\ndef planted():\n    {line}\n")
    try:
        assert any(name.startswith(contract) for name in broken(checkout))
    finally:
        path.unlink() if before is None else path.write_text(before)


def test_no_module_is_imported_by_what_it_imports() -> None:
    graph = grimp.build_graph("m2clip", exclude_type_checking_imports=True, cache_dir=None)
    assert {"m2clip.kernels.dispatch", "m2clip.cli"} <= graph.modules
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names them
