"""Calls of the program within this process."""

from __future__ import annotations

import pytest

from m2clip import cli

NAMES = ["juggling", "riding a horse", "cooking", "running", "sleeping"]


def call(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    capfd.readouterr()
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def one_line(result: tuple[int, str, str]) -> str:
    """The error of a command that failed as it should."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("m2clip") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err
