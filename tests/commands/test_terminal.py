"""What reaches a terminal: names that would act on it, narrow, closed and full streams, interrupts, notices."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from m2clip import cli, terminal
from m2clip.commands.shared import output
from m2clip.errors import InputError, Notice
from m2clip.terminal import printable

# Colour, window title, 8-bit control, reversed writing, a line that pretends to be another, a name that is not UTF-8.
NASTY = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp \r\nm2clip: all good \x7f \u2028 \udcff é 数 🏃‍♀️ می‌روم"
SHOWN = r"\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp \r\nm2clip: all good \x7f \u2028 \udcff é 数 🏃‍♀️ می‌روم"


def program(*words: object, **named: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from m2clip import cli; sys.exit(cli.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], text=True, **{"capture_output": True, **named}
    )  # type: ignore[call-overload,no-any-return]


def test_nothing_in_a_name_acts_on_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert printable(NASTY) == SHOWN and printable("a\nb", keep="\n") == "a\nb"
    output.print_line(NASTY)
    output.console().print(output.table(("class", NASTY), [(NASTY.replace("\n", ""), "1")], numbers=1))
    output.print_json({"name": NASTY})
    terminal.tell(NASTY)
    out, err = capfd.readouterr()
    assert not {c for c in out + err if c != "\n" and printable(c) != c}
    assert out.startswith(SHOWN + "\n") and err.count("\n") == 1
    assert json.loads(out[out.index("{") :])["name"] == NASTY


@pytest.mark.parametrize("words", [("predict", NASTY), ("predict", "a", "--labels", "x", "--top", NASTY), (NASTY,)])
def test_errors_are_one_line_whatever_they_name(capfd: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    try:
        code = cli.main([*words, *(["--labels", "a", "b"] if words == ("predict", NASTY) else [])])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    err = capfd.readouterr().err
    assert code == 2 and err.count("\n") == 1 and r"\x1b[31mred" in err and "\x1b" not in err


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("Kür\n数える\nrunning 🏃\n", encoding="utf-8")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    words = ("describe", tmp_path / "Kür.json", "--classes", tmp_path / "classes.txt")
    found = program(*words, env=ascii_only)
    assert found.returncode == 0 and r"K\xfcr.json" in found.stdout and found.stdout.isascii()
    found = program(*words, "--check", "--json", env=ascii_only)
    assert found.returncode == 2 and found.stderr.isascii() and found.stderr.count("\n") == 1
    (tmp_path / "Kür.json").unlink()
    found = program(*words, "--json", env=ascii_only)
    assert found.stdout.isascii() and json.loads(found.stdout)["file"] == str(tmp_path / "Kür.json")


@pytest.mark.parametrize(
    ("close", "code", "said"),
    [
        ("1>&-", 0, ""),
        ("2>&-", 0, ""),
        ("0<&- 1>&- 2>&-", 0, ""),
        ("1>/dev/full", 2, "No space left"),
        ("| true", 1, ""),
    ],
)
@pytest.mark.parametrize("more", ["", " --json"])
def test_closed_full_and_broken_output(tmp_path: Path, close: str, code: int, said: str, more: str) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    words = f"describe {tmp_path}/d.json --classes {tmp_path}/classes.txt{more}"
    command = f"{sys.executable} -c 'import sys, time; from m2clip import cli; sys.exit(cli.main())' {words}"
    waits = command.replace("from m2clip", "time.sleep(0.2); from m2clip")
    shell = f"set -o pipefail; {waits if '|' in close else command} {close}"
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert found.returncode == code, found.stderr
    assert found.stderr.count("\n") == bool(said) and said in found.stderr
    assert json.loads((tmp_path / "d.json").read_text()) == {
        "a": ["", ""],
        "b": ["", ""],
    }  # and nothing was printed to it


def test_an_interrupt_while_modules_are_imported(tmp_path: Path) -> None:
    """The import swallows KeyboardInterrupt, as some libraries do."""
    (tmp_path / "slow.py").write_text(
        "import time\nprint('importing', flush=True)\nfor _ in range(100):\n"
        "    try:\n        time.sleep(0.2)\n    except BaseException:\n        pass\n"
    )
    code = (
        # Tests may run where interrupts are ignored, as behind nohup.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from m2clip import cli, info\n"
        "info.environment = lambda: __import__('slow')\nsys.exit(cli.main(['info']))"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "importing\n"
    time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (130, "m2clip: interrupted\n")


def test_an_interrupt_elsewhere_is_raised_where_it_comes() -> None:
    with pytest.raises(KeyboardInterrupt):
        cli._interrupt(signal.SIGINT, sys._getframe())


def test_an_error_of_the_system_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("m2clip.info.environment", lambda: (tmp_path / "none").read_text())
    assert cli.main(["info"]) == 2
    assert capfd.readouterr().err == f"m2clip: {tmp_path}/none: No such file or directory\n"


def test_notices_are_told_once_and_go_into_the_json(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment() -> dict[str, object]:
        for _ in range(2):
            warnings.warn(Notice("d: left\n out \x1b[1m", left_out={"a": 1}), stacklevel=1)
        return {"versions": {}}

    monkeypatch.setattr("m2clip.info.environment", environment)
    for _ in range(2):  # each command tells them anew
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cli.main(["info", "--json"]) == 0
        out, err = capfd.readouterr()
        assert err == "m2clip: d: left out \\x1b[1m\n"
        assert json.loads(out) == {"left_out": [{"a": 1}], "versions": {}}


def test_streams_of_a_caller_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", made := io.StringIO())
    monkeypatch.setattr("m2clip.info.environment", lambda: {"versions": {"é": "1"}})
    assert cli.main(["info", "--json"]) == 0 and json.loads(made.getvalue()) == {"versions": {"é": "1"}}
    assert issubclass(InputError, ValueError) and issubclass(Notice, UserWarning)
