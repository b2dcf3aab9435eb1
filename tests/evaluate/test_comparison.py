"""Two tables of predictions against each other: paired rows, intervals, p values, and what cannot be compared."""

from __future__ import annotations

from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest

from m2clip.errors import InputError
from m2clip.evaluate.comparison import (
    Answered,
    bootstrap_interval,
    compare,
    mcnemar,
    read_predictions,
    write_changed,
)


def rows(**predicted: str) -> dict[tuple[str, str, str], Answered]:
    """By name of the video, whose first letter is its class, what is predicted."""
    return {(f"/{name}", "", ""): Answered(name[0], answer) for name, answer in predicted.items()}


def test_models_are_compared_on_what_both_predict(tmp_path: Path) -> None:
    first = rows(a1="a", a2="b", b1="b", b2="b", b3="", c1="c")
    second = rows(a1="a", a2="a", b1="a", b2="B ", b3="b", d1="d")
    found = compare(first, second)
    assert (found.videos, found.first, found.second) == (4, 0.75, 0.75)
    assert found.left_out == {"in the first alone": 1, "in the second alone": 1, "without a prediction": 1}
    assert (found.worse, found.better, found.p_value, found.difference) == (1, 1, 1.0, 0.0)
    assert [(one.name, one.videos, one.first, one.second) for one in found.classes] == [
        ("a", 2, 0.5, 1),
        ("b", 2, 1, 0.5),
    ]
    text = write_changed(found, tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()
    assert text[1:] == ["/a2,,,a,b,a,wrong->right", "/b1,,,b,b,a,right->wrong"]
    changed = found.to_dict()["changed"][0]
    assert (changed["path"], changed["better"], "key" in changed) == ("/a2", True, False)


def test_a_model_against_itself_differs_in_nothing() -> None:
    found = compare(rows(a1="a", b1="a"), rows(a1="a", b1="a"))
    assert (found.difference, found.interval, found.p_value, found.changed) == (0.0, (0.0, 0.0), 1.0, [])


@pytest.mark.parametrize("worse, better", list(product(range(4), (0, 1, 5, 12))))
def test_p_value_is_that_of_the_binomial_distribution(worse: int, better: int) -> None:
    changed = worse + better
    likely = [comb(changed, number) / 2**changed for number in range(changed + 1)]
    # All outcomes that are no more likely than this one.
    exact = sum(share for share in likely if share <= likely[worse] * (1 + 1e-9))
    assert mcnemar(worse, better) == pytest.approx(exact, abs=1e-12)


def test_p_values_of_many_videos() -> None:
    assert 0 < mcnemar(4800, 5200) < 1e-4 and mcnemar(0, 2000) < 1e-300


def test_interval_is_that_of_videos_drawn_one_by_one() -> None:
    steps = np.array([-1] * 12 + [1] * 30 + [0] * 158)
    drawn = np.random.default_rng(3).choice(steps, size=(4000, len(steps))).mean(axis=1)
    low, high = bootstrap_interval(12, 30, 200)
    expected = np.percentile(drawn, [2.5, 97.5])
    assert (low, high) == pytest.approx(expected, abs=0.006)
    assert low < 18 / 200 < high
    assert bootstrap_interval(12, 30, 200) == (low, high) != bootstrap_interval(12, 30, 200, seed=1)


def test_what_cannot_be_compared_is_told() -> None:
    with pytest.raises(InputError, match=r"no video is in both, of 1 and 2 videos \(the first: '/a1' and '/b1'\)"):
        compare(rows(a1="a"), rows(b1="b", b2="b"))
    with pytest.raises(InputError, match="none of the 1 shared videos has a prediction in both"):
        compare(rows(a1=""), rows(a1="a"))
    other = {key: Answered("z", "z") for key in rows(a1="a")}
    with pytest.raises(
        InputError, match="none of the 1 shared videos has the same class in both, such as '/a1': 'a' and 'z'"
    ):
        compare(rows(a1="a"), other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,true\r\na,b\r\n", "no table of predictions: it has no column predicted"),
        ("", "it has no column path"),
        ("path,true,predicted\na,b\n", "line 2: has other columns"),
        ("path,true,predicted\na,b,c,d\n", "line 2: has other columns"),
        ("path,true,predicted\na,b,c\na,b,c\n", "line 3: 'a' is there twice"),
        ('path,true,predicted\na,"b"x,c\n', "no table of predictions"),
        ("\xff", "UTF-8"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as told:
        read_predictions(path)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_relative_paths_are_those_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in (("r.csv", "v.mp4"), ("a.csv", tmp_path / "v.mp4")):
        (tmp_path / name).write_text(f"path,start,end,true,predicted\n{path},0,2,a,a\n")
    assert compare(read_predictions(Path("r.csv")), read_predictions(Path("a.csv"))).videos == 1
