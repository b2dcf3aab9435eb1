"""What `m2clip info` says of the extension, and the stub that type checkers read in its place."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import m2clip
from m2clip.cli import main
from m2clip.kernels import build_info, native

ROOT = Path(__file__).parent.parent
needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension here")


@needs_native
def test_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    before = native.extension.instruction_set()
    assert main(["info", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)["build"]
    assert built["native"] and built["reason"] is None
    assert re.search(r"\d+\.\d+", built["compiler"]) and "-std=c++20" in built["flags"]
    assert built["instruction_sets"][-1] == "portable" and built["instruction_set"] == before
    assert built["threads"] == ("torch" if native.SHARES_THREADS else "own")
    assert native.extension.instruction_set() == before
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "compiled extension" in out and before in out and re.search(r"cuda +off", out)


def test_why_nothing_was_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "extension", None)
    monkeypatch.setattr(native, "find_spec", lambda name: object())
    assert native.why_missing("GLIBCXX_9 not found") == "it was built but does not load: GLIBCXX_9 not found"
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    monkeypatch.setattr(m2clip, "__file__", str(tmp_path / "__init__.py"))
    assert "never built" in native.why_missing("")
    (tmp_path / "_native_missing.txt").write_text("no C++ compiler was found\n")
    monkeypatch.setattr(native, "MISSING", native.why_missing(""))
    assert build_info.build_info() == {"native": False, "reason": "no C++ compiler was found"}
    assert main(["info"]) == 0
    assert "none: no C++ compiler was found" in capsys.readouterr().out


def _stub() -> dict[str, int | None]:
    """Name -> number of arguments, of a class those of its constructor; None for a variable."""
    found: dict[str, int | None] = {}
    for node in ast.parse((ROOT / "m2clip" / "_native.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = len(node.args.posonlyargs)
        elif isinstance(node, ast.ClassDef):
            constructor = node.body[0]
            assert isinstance(constructor, ast.FunctionDef)
            found[node.name] = len(constructor.args.posonlyargs)
        elif isinstance(node, ast.AnnAssign) and node.value is None and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def _arguments(value: Any) -> int | None:
    """As pybind11 writes them into the documentation: f(self: ..., arg0: int, arg1: str) -> None."""
    if isinstance(value, str):
        return None
    text = (value.__init__ if isinstance(value, type) else value).__doc__
    return len(re.findall(r"\b(?:self|arg\d+): ", text))


@needs_native
def test_stub_matches_the_extension() -> None:
    module = {name: value for name, value in vars(native.extension).items() if not name.startswith("_")}
    assert {name: _arguments(value) for name, value in module.items()} == _stub()
