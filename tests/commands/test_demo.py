"""The demo from videos to picture, made small."""

from __future__ import annotations

import pytest

from m2clip.files.kept_work import read_record
from m2clip.protocols.demo import run_demo


@pytest.mark.slow
def test_demo_leaves_results_run_and_picture_and_repeats_from_where_it_was(tmp_path, capfd):
    said: list[str] = []
    small = {"clips_per_class": {"train": 2, "val": 1}, "overrides": ["--optim.epochs=1", "--data.workers=0"]}
    results = run_demo(tmp_path / "demo", say=said.append, **small)
    assert results["classes"] == {"base": 40, "novel": 20}
    assert results["videos"] == {"base": 40, "novel": 20}
    assert read_record(tmp_path / "demo" / "results.json") == results
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 20_000
    assert "frozen CLIP" in said[0] and "chance" in said[0]
    trained = tmp_path / "demo" / "run" / "adapters.safetensors"
    before = trained.read_bytes()
    capfd.readouterr()
    again = run_demo(tmp_path / "demo", say=None, **small)
    assert capfd.readouterr().out == ""
    assert again["accuracy"] == results["accuracy"]
    assert trained.read_bytes() == before
