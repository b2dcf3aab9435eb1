"""The recipes of CONTRIBUTING.md, done: what is added without an edit here."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

import m2clip
from m2clip import cli
from m2clip.commands.shared.parsing import add_command
from m2clip.config import load_config
from m2clip.config_fields import OptimConfig, deciding, setting, settings_of
from m2clip.data.lists.annotations import load_annotations
from m2clip.errors import InputError
from m2clip.kernels.ops.checks import check_float
from m2clip.kernels.ops.operator import IMPLEMENTATIONS, Operator
from m2clip.methods import check_type, create_model
from tests.fake_model import random_tiny_clip

ROOT = Path(__file__).resolve().parent.parent


def write_package(folder: Path, group: str, points: str, **modules: str) -> None:
    """An installed package: its modules, and the entry points that pip would write."""
    about = folder / "added-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_a_method_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(ROOT / "examples" / "adaptformer", tmp_path / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", tmp_path / "site", tmp_path / "source"], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    clip, names = random_tiny_clip(), ["run", "jump"]
    model = create_model("adaptformer", clip, names, num_frames=2, width=4)
    frozen = create_model("clip", clip, names, num_frames=2)
    video = torch.randn(3, 2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(video).similarity, frozen(video).similarity)
    model.loss(video, torch.tensor([0, 1, 0])).total.backward()
    trained = model.trained_state_dict()
    assert set(trained) == {name for name, tensor in model.named_parameters() if tensor.grad is not None}
    assert len(trained) == 4 * len(model.visual.blocks) + 2
    for tensor in trained.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(model(video).similarity, frozen(video).similarity)
    with model.adapters_disabled():
        torch.testing.assert_close(model(video).similarity, frozen(video).similarity)
    again = m2clip.load_adapters(m2clip.save_adapters(model, tmp_path / "run"), clip)
    model.eval()
    assert torch.equal(again(video).logits, model(video).logits)

    assert load_config(None, ["model.method=adaptformer", "model.options.width=8"]).model.method == "adaptformer"
    with pytest.raises(InputError, match="unknown field model.options.depth"):
        load_config(None, ["model.method=adaptformer", "model.options.depth=8"])
    assert cli.main(["info", "--clip", "tiny", "--method", "adaptformer"]) == 0
    assert "adaptformer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise OSError('no such library')", r"^method 'added' \(added:METHOD\) cannot be imported: no such library$"),
        ("import sys; sys.exit(0)", r"^method 'added' \(added:METHOD\) cannot be imported: 0$"),
        ("METHOD = 3", r"^method 'added' \(added:METHOD\) is not a m2clip.methods.Method$"),
        ("from m2clip.methods import Method\nMETHOD = Method(1, 2, 3, 4)", r"^method 'added' is none: a Method has a"),
        (None, r"^unknown method 'added'; choose from m2clip, [^\n]*, clip$"),
    ],
)
def test_a_method_that_is_none(module: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module is not None:
        write_package(tmp_path, "m2clip.methods", "added = added:METHOD", added=module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "added", raising=False)
    with pytest.raises(InputError, match=said):
        create_model("added", random_tiny_clip(), ["a", "b"])


FORMAT = """
from m2clip.data.lists.rows import Parsed, Row

def parse(source):
    names, rows = [], []
    for number, line in enumerate(source.path.read_text().splitlines(), 1):
        name, path = line.split("=")
        names.append(name)
        rows.append(Row(f"{source.path}, line {number}", source.root / path, len(names) - 1))
    return Parsed(rows, names)
"""


def test_a_format_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "m2clip.formats", "equals = equals_format:parse", equals_format=FORMAT)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "list.txt").write_text("run=a.mp4\njump=b.mp4\n")
    found = load_annotations(tmp_path / "list.txt", format="equals")
    assert [(item.path.name, item.label) for item in found.items] == [("a.mp4", 0), ("b.mp4", 1)]
    assert (found.class_names, found.format) == (["run", "jump"], "equals")
    (tmp_path / "other.txt").write_text("run\n")
    with pytest.raises(InputError, match=r"other.txt: annotation format 'equals' cannot read it: ValueError\('not en"):
        load_annotations(tmp_path / "other.txt", format="equals")
    with pytest.raises(InputError, match=r"^unknown annotation format 'equal'; choose from auto, list, .*, equals$"):
        load_annotations(tmp_path / "list.txt", format="equal")


def test_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def add_parser(commands: Any) -> None:
        add_command(commands, "greet", run, "Greet a person", "  m2clip greet Ada").add_argument("name")

    def run(args: argparse.Namespace) -> None:
        print(f"hello {args.name}")

    module = ModuleType("m2clip.commands.greet")
    vars(module).update(add_parser=add_parser, run=run)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.GROUPS, "use a model", ("greet",))
    assert cli.main(["greet", "Ada"]) == 0 and capsys.readouterr().out == "hello Ada\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "\n  greet          Greet a person.\n" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Of the recipes and of the architecture: paths from the root, or from m2clip/."""
    named = set(re.findall(r"`([\w/.]+(?:\.py|/))`", (ROOT / page).read_text(encoding="utf-8")))
    assert named
    assert [
        name for name in sorted(named) if not (ROOT / name).exists() and not (ROOT / "m2clip" / name).exists()
    ] == []


def test_a_field_of_the_configuration() -> None:
    @dataclass
    class Wider(OptimConfig):
        brightness: float = setting(0.0, "training", "how much brighter pictures are", unit="levels", at_least=0)

    assert settings_of(Wider)["brightness"].unit == "levels"
    assert deciding(Wider(), "training")["brightness"] == 0
    assert "brightness" not in deciding(Wider(), "nothing")


def test_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ModuleType("m2clip.kernels.native.doubled")
    vars(backend).update(forward=lambda x: 2 * x, backward=lambda dy: 2 * dy)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setitem(IMPLEMENTATIONS, "doubled", {})  # taken out again after the test
    doubled = Operator(
        "doubled",
        "Tensor x",
        {"native": "native.doubled"},
        reference=lambda x: 2 * x,
        forward=lambda run, x, keep: (run.forward(x),),
        backward=lambda run, dy, saved, needs, x: [run.backward(dy)],
        like=lambda run, x: (torch.empty_like(x),),
        check=lambda x: check_float("x", x),
    )
    x = torch.arange(3.0, requires_grad=True)
    for call in (doubled, torch.compile(doubled, backend="aot_eager", fullgraph=True)):
        y = call(x, "native")
        assert y.tolist() == [0, 2, 4] and torch.autograd.grad(y.sum(), x)[0].tolist() == [2, 2, 2]
    torch.library.opcheck(torch.ops.m2clip.doubled.default, (x, "native", True))


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (list[int], [[1, 2], []], [3, "ab", None, ["a"]]),
        (tuple[float, ...], [(0.5,), [1.0]], ["0.5", 0.5]),
        (int | str, [3, "three", -5], [0.5, None, [3]]),
        (str | None, ["a", None], [5, ["a"]]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (dict[str, float], [{"a": 1}], [[1], "a", {"a": "b"}]),
        (Any, [3, "three", None], []),
        (float | None, [1, 0.5, None], [True, "1"]),
    ],
)
def test_types_of_options_of_any_method(hint: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_type("option x", value, hint)
    for value in bad:
        with pytest.raises(InputError, match=r"^option x[^\n]*$"):
            check_type("option x", value, hint)
