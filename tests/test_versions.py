"""The supported versions are the same wherever they are named."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import oldest  # noqa: E402


def test_the_table_has_the_lower_bounds_of_the_package() -> None:
    table = re.findall(
        r"^\| (\w+) \| ([\d.]+) \|", (ROOT / "docs/versions.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = dict(table)
    bounds = oldest.lower_bounds()
    for package in ("torch", "torchvision"):
        assert documented[package] == bounds[package]
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', oldest.PROJECT.read_text(encoding="utf-8"))
    assert documented["Python"] == python


def test_the_constraints_admit_no_release_but_the_oldest(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(oldest.__file__, run_name="__main__")
    constraints = capsys.readouterr().out.splitlines()
    assert constraints == [f"{package}=={version}" for package, version in oldest.lower_bounds().items()]


def test_a_package_without_a_lower_bound_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "pyproject.toml"
    monkeypatch.setattr(oldest, "PROJECT", project)
    project.write_text('dependencies = [\n    "torch>=2.1",\n    "ray[data]>=2",\n]\n', encoding="utf-8")
    assert oldest.lower_bounds() == {"torch": "2.1", "ray": "2"}
    project.write_text('dependencies = [\n    "torch",\n]\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="'torch' has no lower bound"):
        oldest.lower_bounds()
