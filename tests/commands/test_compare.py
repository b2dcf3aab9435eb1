"""`m2clip compare`: runs and files of predictions, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.calls import call, one_line


def write(path: Path, predicted: str, true: str = "aaaabbbb") -> Path:
    """A table of predictions of videos 0.mp4, 1.mp4, ..., a letter for each class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"/v/{number}.mp4,{one},{other}" for number, (one, other) in enumerate(zip(true, predicted, strict=True))]
    path.write_text("\r\n".join(["path,true,predicted", *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one / "val_predictions.csv", "aabbbbba")
    write(other / "val_predictions.csv", "aaabbbaa")
    return one, other


def test_runs_are_compared(runs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed.csv"
    code, out, err = call(capfd, "compare", *runs, "--out", changed)
    assert (code, err) == (0, "")
    assert "of 8 videos" in out and "difference: +0.00 points, 95 % interval -37.50 to +37.50" in out
    assert "the second alone recognises 1 videos, the first alone 1: p = 1 (exact McNemar test)" in out
    assert "classes that gained most" in out and "classes that lost most" in out and f"written: {changed}" in out
    assert changed.read_text().splitlines()[1:] == ["/v/2.mp4,,,a,b,a,wrong->right", "/v/6.mp4,,,b,b,a,right->wrong"]
    code, out, _ = call(capfd, "compare", *runs, "--out", changed, "--json")  # which is replaced
    found = json.loads(out)
    assert (found["videos"], found["first"], found["p_value"]) == (
        8,
        {"predictions": str(runs[0] / "val_predictions.csv"), "top1": 0.625},
        1.0,
    )
    assert [one["path"] for one in found["changed"]] == ["/v/2.mp4", "/v/6.mp4"]


def test_the_python_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs/a/val_predictions.csv", "aabbbbba")
    write(tmp_path / "runs/b/val_predictions.csv", "aaabbbbb")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "own_videos.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})
    out = capsys.readouterr().out
    assert out.startswith("0.25 (0.0, 0.") and out.endswith(") 0.5\n")


def test_what_is_not_shared_is_told(runs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = write(tmp_path / "few.csv", "aa", "aa")
    code, out, err = call(capfd, "compare", runs[0], few)
    assert code == 0 and "of 2 videos" in out and "classes that" not in out
    assert err == "m2clip: 2 videos are compared; left out: 6 in the first alone\n"
    assert json.loads(call(capfd, "compare", runs[0], few, "--json")[1])["left_out"] == {"in the first alone": 6}


def test_which_predictions_are_meant(
    runs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = runs
    (tmp_path / "empty").mkdir()
    assert "has no predictions: score it first with m2clip eval" in one_line(
        call(capfd, "compare", one, tmp_path / "empty")
    )
    assert "no such run folder or file" in one_line(call(capfd, "compare", one, tmp_path / "absent"))
    assert "give a name that ends with .csv" in one_line(call(capfd, "compare", *runs, "--out", tmp_path / "x.png"))
    write(one / "eval_test_predictions.csv", "aaaabbbb")
    assert call(capfd, "compare", *runs)[0] == 0  # the other run has no such file
    assert "holds several predictions" in one_line(call(capfd, "compare", one, other / "val_predictions.csv"))
    write(other / "eval_test_predictions.csv", "aaaabbbb")
    assert "hold several predictions (eval_test_predictions.csv, val_pred" in one_line(call(capfd, "compare", *runs))
    (other / "val_predictions.csv").unlink()
    (one / "eval_test_predictions.csv").unlink()
    assert call(capfd, "compare", *runs)[0] == 0  # one each, of other names
