"""Fields of the configuration on the command line: listed by --help, and taken apart."""

from __future__ import annotations

import pytest

from m2clip import cli
from m2clip.config import RunConfig, bundled_configs
from m2clip.config_fields import settings_of
from m2clip.methods import METHODS


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "episodes train", "fewshot", "base-to-novel"])
def test_help_lists_every_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "9999")
    lines = help_of(capsys, *command.split()).splitlines()
    own = {"--output"} if command in ("fewshot", "base-to-novel") else set()
    assert all(sum(line.startswith(f"  {option} ") for line in lines) == 1 for option in own)
    for name, setting in settings_of(RunConfig).items():
        if f"--{name}" in own:
            continue
        at = next(number for number, line in enumerate(lines) if line.startswith(f"  --{name} "))
        said = lines[at] if setting.meaning in lines[at] else lines[at] + lines[at + 1]
        assert setting.meaning in said and "default: " in said
        assert said.endswith("*") == ("training" in setting.decides)
    for field in (
        "--optim.epochs EPOCHS length of training (whole number, 1 or more, 1000000 or less; default: 12) *",
        "--optim.beta2 NUMBER AdamW's, of the mean of squared gradients (number, 0 or more, below 1; default: 0.999) *",
        "--eval.crops {1,3,m2clip4} crops per clip. m2clip4: the four of the authors' code (default: 1)",
        "--episodes.train {true,false} draw an episode from data.train for each forward pass of training "
        "(default: false) *",
        "--data.train TEXT training videos: a list file, or a folder of videos (default: null)",
    ):
        assert field in {" ".join(line.split()) for line in lines}
    text = "\n".join(lines)
    assert all(name in text for name in (*bundled_configs(), *METHODS))
    assert (
        text.index("options:")
        < text.index("--data.train")
        < text.index("recipes for --config")
        < text.index("example:")
    )


def test_help_of_other_commands_lists_none(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval", "predict", "episodes eval"):
        assert "--data." not in help_of(capsys, *command.split())
