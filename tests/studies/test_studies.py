"""The studies: their pages are what their numbers say, and what runs again does not run what is done."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from studies import ablation, comparison, episodes, methods, runner


@pytest.mark.parametrize("study", [ablation, comparison, episodes, methods], ids=lambda study: study.__name__)
def test_the_page_is_made_of_the_recorded_numbers(study: ModuleType) -> None:
    name = study.__name__.removeprefix("studies.")
    made = runner.text_of(name, runner.recorded(name), study.page, getattr(study, "AFTER", ""))
    assert (runner.ROOT / "docs" / f"{name}.md").read_text() == made


def test_a_study_trains_only_what_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called, published = [], {}

    def train(program: str, row: str, seed: str) -> None:
        called.append((row, int(seed)))
        scores = ablation.scores_of(tmp_path, row, int(seed))
        scores.parent.mkdir(parents=True)
        scores.write_text(json.dumps({"trained_parameters": 7, **dict.fromkeys(ablation.MEASURES, 0.5)}))

    monkeypatch.setattr(ablation, "render_dataset", lambda *args, **options: None)
    monkeypatch.setattr(ablation, "ROWS", {"one": {}, "two": {}})
    monkeypatch.setattr(runner, "call_again", train)
    monkeypatch.setattr(runner, "publish", lambda name, content, page: published.update(content))
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--folder", str(tmp_path), "--seeds", "2"])
    ablation.main()
    assert sorted(called) == [(ablation.FROZEN, 0), ("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert published["rows"]["two"]["novel_similarity"] == [0.5, 0.5] and "7" in ablation.page(published)[-1]
    ablation.main()
    assert len(called) == 5


def test_cells() -> None:
    assert runner.of_seeds([]) == "–" and runner.of_seeds([0.5]) == "50.0"
    assert runner.of_seeds([0.4, 0.6]) == "50.0 ± 14.1"
    assert runner.table(("", "a"), [("b", "1")]) == ["| | a |", "|---|---:|", "| b | 1 |"]
