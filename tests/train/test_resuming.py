"""What a run may go on with other than it began: more epochs, and other processes for the same batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2clip.errors import InputError
from m2clip.train import trainer as train
from m2clip.train.log import METRICS
from m2clip.train.resuming import accept_changes
from m2clip.train.state import Progress
from tests.train.training_run import build_clip, build_config, write_videos

RUN = {"optim.epochs": 2, "processes": 2, "optim.batch_size": 4}


def test_a_finished_run_goes_on_for_more_epochs(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    for epochs, rows in ((1, 4), (2, 8)):
        config = build_config(videos, tmp_path / "run", f"optim.epochs={epochs}")
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
        steps = [line.split(",")[0] for line in (tmp_path / "run" / METRICS).read_text().splitlines()[1:]]
        assert steps == [str(step) for step in range(1, rows + 1)]
    with pytest.raises(InputError, match=r"optim.epochs \(2 there, 1 here\)"):
        train.run(build_config(videos, tmp_path / "run", "optim.epochs=1"), clip=build_clip(), device="cpu", quiet=True)


def test_an_unfinished_run_keeps_its_epochs() -> None:
    saved = dict(RUN)
    assert accept_changes(saved, {**RUN, "optim.epochs": 3}, Progress(epoch=1), False) == [] and saved == RUN


def test_other_processes_take_the_same_batches() -> None:
    saved, now = dict(RUN), {**RUN, "processes": 1, "optim.batch_size": 8}
    (line,) = accept_changes(saved, now, Progress(), False)
    assert saved == now and "1 process in place of 2" in line
    with pytest.raises(InputError, match=r"would go on with 4 on 1 process: start 2 processes or set .*batch_size=8"):
        accept_changes(dict(RUN), {**RUN, "processes": 1}, Progress(), False)
    with pytest.raises(InputError, match="2 episodes per forward pass in all, .* start 2 processes$"):
        accept_changes(dict(RUN), {**RUN, "processes": 1}, Progress(), True)
