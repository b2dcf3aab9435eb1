"""What `m2clip info` says of the extension, and the stubs that type checkers read in place of the compiled modules."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from m2clip.cli import main
from m2clip.kernels import build_info, compiled
from m2clip.kernels.cuda import extension as cuda
from m2clip.kernels.native import extension as native

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setattr(compiled, "find_spec", lambda name, package: object())
    assert (
        compiled.why_missing("_native", "GLIBCXX_9 not found") == "it was built but does not load: GLIBCXX_9 not found"
    )
    monkeypatch.setattr(compiled, "find_spec", lambda name, package: None)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert "never built" in compiled.why_missing("_native", "")
    (tmp_path / "_native_missing.txt").write_text("no C++ compiler was found\n")
    monkeypatch.setattr(native, "MISSING", compiled.why_missing("_native", ""))
    assert build_info.build_info() == {"native": False, "reason": "no C++ compiler was found"}
    assert main(["info"]) == 0
    assert "none: no C++ compiler was found" in capsys.readouterr().out


def _stub(name: str) -> dict[str, int | None]:
    """Name -> number of arguments, of a class those of its constructor; None for a variable."""
    found: dict[str, int | None] = {}
    for node in ast.parse((ROOT / "kernels" / f"{name}.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = len(node.args.posonlyargs)
        elif isinstance(node, ast.ClassDef):
            (constructor,) = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found[node.name] = len(constructor.args.posonlyargs + constructor.args.args)
        elif isinstance(node, ast.AnnAssign) and node.value is None and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def _arguments(value: Any) -> int | None:
    """As pybind11 writes them into the documentation: f(self: ..., arg0: int, arg1: str) -> None."""
    if isinstance(value, str):
        return None
    text = (value.__init__ if isinstance(value, type) else value).__doc__
    return len(re.findall(r"\b(?:self|arg\d+): ", text))


@pytest.mark.parametrize(("name", "extension"), [("_native", native.extension), ("_cuda", cuda.extension)])
def test_stub_matches_the_extension(name: str, extension: Any) -> None:
    if extension is None:
        pytest.skip(f"no compiled extension {name} here")
    module = {name: _arguments(value) for name, value in vars(extension).items() if not name.startswith("_")}
    stub = _stub(name)
    if "HopperAdapterArgs" not in module:  # compiled for other GPUs
        stub = {name: count for name, count in stub.items() if "hopper" not in name.lower()}
    assert module == stub
